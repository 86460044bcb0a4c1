"""SmolLM3; some of its layers do not rotate queries and keys."""

from typing import Any

from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import llama, rotary, windows
from lora_opt.reading import values


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type smollm3."""
  fields = llama.sizes(settings, kv_heads=4, max_length=32_768)
  unrotated = _unrotated(settings, fields['num_layers'])
  return DecoderConfig(
    **fields,
    **rotary.scaling(settings, fields, theta=2e6),
    # A window, if used, applies to the layers without rotary positions.
    **windows.used(settings, unrotated, None),
    unrotated_layers=unrotated,
    tie_embeddings=settings.boolean('tie_word_embeddings', True),
    activation=settings.choose('hidden_act', {'silu': 'silu'}, 'silu'),
    attention_bias=settings.boolean('attention_bias', False),
    mlp_bias=settings.boolean('mlp_bias', False),
  )


def _unrotated(settings, layers):
  """Reads for each layer whether it has no rotary positions.

  Despite its name, no_rope_layers is 1 for the layers that have them.
  """
  every = settings.integer('no_rope_layer_interval', 4)
  listed = [int((i + 1) % every != 0) for i in range(layers)]
  listed = settings.items('no_rope_layers', listed, null=True)
  place = f'{settings.place}: no_rope_layers'
  values.items(listed, place, size=layers)
  return tuple(not values.integer(each, place, 0, 1) for each in listed)


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config`."""
  unrotated = config.unrotated_layers or (False,) * config.num_layers
  return llama.common_settings(config) | {
    'architectures': ['SmolLM3ForCausalLM'],
    'model_type': 'smollm3',
    'hidden_act': config.activation,
    'mlp_bias': config.mlp_bias,
    'no_rope_layers': [int(not each) for each in unrotated],
    **windows.written(config),
  }


SMOLLM3 = llama.LLAMA._replace(
  read_config=read_config,
  harmless=('attention_dropout', 'max_window_layers', 'pretraining_tp'),
  write_config=write_config,
)
