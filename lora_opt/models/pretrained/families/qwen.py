"""The dense models of Qwen2, Qwen2.5 and Qwen3."""

from typing import Any

from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import llama, rotary, windows


def read_config2(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type qwen2, which Qwen2.5 uses too."""
  # Positions of images, in the multimodal models.
  settings.expect('use_mrope', False)
  return DecoderConfig(**_fields(settings), qkv_bias=True)


def read_config3(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type qwen3."""
  return DecoderConfig(
    **_fields(settings, head_dim=128),
    qk_norm=True,
    attention_bias=settings.boolean('attention_bias', False),
  )


def _fields(settings, **defaults):
  """The fields that Qwen2 and Qwen3 have in common."""
  fields = llama.sizes(settings, kv_heads=32, max_length=32_768, **defaults)
  return fields | {
    **rotary.scaling(settings, fields),
    'tie_embeddings': settings.boolean('tie_word_embeddings', False),
    'activation': settings.choose('hidden_act', {'silu': 'silu'}, 'silu'),
    **_windows(settings, fields['num_layers']),
  }


def _windows(settings, layers):
  """The window of the layers from max_window_layers on, if it is used."""
  first = settings.integer('max_window_layers', 28, least=0)
  windowed = tuple(layer >= first for layer in range(layers))
  return windows.used(settings, windowed, 4096)


def write_config2(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config2`."""
  settings = llama.common_settings(config) | windows.written(config)
  del settings['attention_bias']  # fixed: on q, k and v, not on the output
  return settings | {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'hidden_act': config.activation,
  }


def write_config3(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config3`."""
  return llama.common_settings(config) | {
    'architectures': ['Qwen3ForCausalLM'],
    'model_type': 'qwen3',
    'hidden_act': config.activation,
    **windows.written(config),
  }


QWEN2 = llama.LLAMA._replace(
  read_config=read_config2,
  harmless=('attention_dropout',),
  write_config=write_config2,
)
QWEN3 = QWEN2._replace(
  read_config=read_config3,
  names=llama.NAMES | llama.QK_NORMS,
  write_config=write_config3,
)
