"""The architectures that can be loaded, by the model_type of config.json."""

from lora_opt.models.pretrained.families.bert import BERT, ROBERTA
from lora_opt.models.pretrained.families.deberta import DEBERTA
from lora_opt.models.pretrained.families.gemma import GEMMA, GEMMA2, GEMMA3
from lora_opt.models.pretrained.families.gpt2 import GPT2
from lora_opt.models.pretrained.families.llama import LLAMA
from lora_opt.models.pretrained.families.olmo2 import OLMO2
from lora_opt.models.pretrained.families.phi3 import PHI3
from lora_opt.models.pretrained.families.qwen import QWEN2, QWEN3
from lora_opt.models.pretrained.families.smollm3 import SMOLLM3
from lora_opt.models.pretrained.families.t5 import MT5, T5
from lora_opt.models.pretrained.families.vit import CLIP, SIGLIP, VIT

FAMILIES = {
  'bert': BERT,
  'clip': CLIP,
  'deberta-v2': DEBERTA,
  'gemma': GEMMA,
  'gemma2': GEMMA2,
  'gemma3_text': GEMMA3,
  'gpt2': GPT2,
  'llama': LLAMA,
  'mistral': LLAMA,
  'mt5': MT5,
  'olmo2': OLMO2,
  'phi3': PHI3,
  'qwen2': QWEN2,
  'qwen3': QWEN3,
  'roberta': ROBERTA,
  'siglip': SIGLIP,
  'smollm3': SMOLLM3,
  't5': T5,
  'vit': VIT,
}
