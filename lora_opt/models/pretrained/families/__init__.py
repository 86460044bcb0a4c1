"""The architectures that load, by the model_type of their config.json."""

from lora_opt.models.pretrained.families.llama import LLAMA

FAMILIES = {
  'llama': LLAMA,
  'mistral': LLAMA,
}
