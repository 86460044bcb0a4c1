"""Gemma 1 and 2, and the text models of Gemma 3."""

from typing import Any

from lora_opt.models.causal_lm import CausalLM, abstract_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import llama, rotary, windows
from lora_opt.models.pretrained.family import Family, TensorName
from lora_opt.models.pretrained.formats import HUGGING_FACE

# Gemma's first config.json files say gelu, but the model was trained with the
# tanh approximation, and transformers now reads gelu as that.
ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu_tanh'}

LAYER = llama.LAYER
NAMES2 = llama.NAMES | {
  'layers/attention_post_norm/scale': TensorName(
    f'{LAYER}.post_attention_layernorm.weight'
  ),
  'layers/mlp_norm/scale': TensorName(
    f'{LAYER}.pre_feedforward_layernorm.weight'
  ),
  'layers/mlp_post_norm/scale': TensorName(
    f'{LAYER}.post_feedforward_layernorm.weight'
  ),
}
NAMES3 = NAMES2 | llama.QK_NORMS


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type gemma."""
  sizes = _sizes(settings, kv_heads=16, max_length=8192)
  return DecoderConfig(**sizes, **rotary.scaling(settings, sizes))


def read_config2(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type gemma2."""
  sizes = _sizes(settings, kv_heads=4, max_length=8192)
  return DecoderConfig(
    **sizes,
    **rotary.scaling(settings, sizes),
    **_later(settings, sizes['num_layers'], 2, softcaps=(50.0, 30.0)),
  )


def read_config3(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type gemma3_text."""
  sizes = _sizes(settings, kv_heads=4, max_length=131_072)
  pattern = settings.integer('_sliding_window_pattern', 6)
  pattern = settings.integer('sliding_window_pattern', pattern)
  return DecoderConfig(
    **sizes,
    **_rotary(settings, sizes),
    **_later(settings, sizes['num_layers'], pattern, softcaps=(None, None)),
    qk_norm=True,
  )


def _sizes(settings, **defaults):
  settings.expect('use_bidirectional_attention', False, None)
  # The newer name, hidden_activation, takes precedence.
  names = {name: name for name in ACTIVATIONS}
  name = settings.choose('hidden_act', names, 'gelu_pytorch_tanh', null=True)
  name = settings.choose('hidden_activation', names, name, null=True)
  return llama.sizes(settings, head_dim=256, **defaults) | {
    'tie_embeddings': settings.boolean('tie_word_embeddings', True),
    'norm': 'rms_plus_one',
    'activation': ACTIVATIONS[name],
    'scale_embedding': True,
    'attention_bias': settings.boolean('attention_bias', False),
  }


def _later(settings, layers, pattern, softcaps):
  """Reads the fields that Gemma 2 and 3 have but the first Gemma lacks.

  Args:
    settings: The file.
    layers: Number of layers.
    pattern: Every layer whose number, from 1, is a multiple of this has full
      attention.
    softcaps: Used if the caps of scores and of logits are absent.
  """

  def softcap(key, default):
    return None if settings.is_null(key) else settings.number(key, default)

  windowed = tuple((layer + 1) % pattern != 0 for layer in range(layers))
  return {
    'post_norms': True,
    'attention_scale': settings.number('query_pre_attn_scalar', 256) ** -0.5,
    'attention_softcap': softcap('attn_logit_softcapping', softcaps[0]),
    'logit_softcap': softcap('final_logit_softcapping', softcaps[1]),
    'window': settings.integer('sliding_window', 4096),
    'windowed_layers': windows.by_layer(settings, windowed),
  }


def _rotary(settings, sizes):
  """Reads the rotary fields of layers with full and with windowed attention."""
  # transformers 5 has a set of parameters for each kind of layer.
  settings.expect_one('rope_parameters', 'rope_scaling')
  by_kind = settings.section('rope_parameters')
  rope = by_kind.section('full_attention')
  local = by_kind.section('sliding_attention')
  by_kind.check_all_asked()
  if 'rope_scaling' in settings:
    rope = settings.section('rope_scaling')
  theta = rotary.base(settings, rope, 'rope_theta', 1e6)
  outside = 'rope_local_base_freq'
  local_theta = rotary.base(settings, local, outside, 1e4)
  context = rotary.context(sizes)
  if rotary.recipe(local, local_theta, **context):
    local.refuse('rope_type', 'scaling of windowed layers', ('default',))
  return {
    'rope_theta': theta,
    'local_rope_theta': local_theta,
    **rotary.recipe(rope, theta, **context),
  }


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config`."""
  return llama.common_settings(config) | {
    'architectures': ['GemmaForCausalLM'],
    'model_type': 'gemma',
    'hidden_act': 'gelu_pytorch_tanh',
    'hidden_activation': 'gelu_pytorch_tanh',
  }


def write_config2(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config2`."""
  return llama.common_settings(config) | {
    'architectures': ['Gemma2ForCausalLM'],
    'model_type': 'gemma2',
    **_written(config),
  }


def write_config3(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config3`."""
  return llama.common_settings(config) | {
    'architectures': ['Gemma3ForCausalLM'],
    'model_type': 'gemma3_text',
    'rope_local_base_freq': config.local_rope_theta,
    **_written(config),
  }


def _written(config):
  scale = config.attention_scale or config.head_dim**-0.5
  return {
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': round(scale**-2, 6),
    'sliding_window': config.window or config.max_length,
    'layer_types': windows.layer_types(config),
    'attn_logit_softcapping': config.attention_softcap,
    'final_logit_softcapping': config.logit_softcap,
  }


GEMMA = Family(
  read_config=read_config,
  harmless=('attention_dropout',),
  names=llama.NAMES,
  abstract_base=abstract_base,
  model=CausalLM,
  files=HUGGING_FACE,
  besides=llama.besides,
  prefix='model.',
  write_config=write_config,
)
GEMMA2 = GEMMA._replace(
  read_config=read_config2,
  # cache_implementation is about the hybrid cache of older transformers.
  harmless=('attention_dropout', 'cache_implementation'),
  names=NAMES2,
  write_config=write_config2,
)
GEMMA3 = GEMMA2._replace(
  read_config=read_config3, names=NAMES3, write_config=write_config3
)
