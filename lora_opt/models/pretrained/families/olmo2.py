"""OLMo 2, whose norms come after attention and MLP."""

from typing import Any

from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import llama, rotary
from lora_opt.models.pretrained.family import TensorName

BEFORE = ('layers/attention_norm/scale', 'layers/mlp_norm/scale')
NAMES = {
  **{path: name for path, name in llama.NAMES.items() if path not in BEFORE},
  **llama.QK_NORMS,
  'layers/attention_post_norm/scale': TensorName(
    f'{llama.LAYER}.post_attention_layernorm.weight'
  ),
  'layers/mlp_post_norm/scale': TensorName(
    f'{llama.LAYER}.post_feedforward_layernorm.weight'
  ),
}


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type olmo2."""
  fields = llama.sizes(settings)
  return DecoderConfig(
    **fields,
    **rotary.scaling(settings, fields),
    tie_embeddings=settings.boolean('tie_word_embeddings', False),
    activation=settings.choose('hidden_act', {'silu': 'silu'}, 'silu'),
    attention_bias=settings.boolean('attention_bias', False),
    pre_norms=False,
    post_norms=True,
    wide_qk_norm=True,
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config`."""
  return llama.common_settings(config) | {
    'architectures': ['Olmo2ForCausalLM'],
    'model_type': 'olmo2',
    'hidden_act': config.activation,
  }


OLMO2 = llama.LLAMA._replace(
  read_config=read_config,
  harmless=('attention_dropout',),
  names=NAMES,
  write_config=write_config,
)
