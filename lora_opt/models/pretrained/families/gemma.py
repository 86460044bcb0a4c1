"""Gemma 1, and the text models of Gemma 3."""

from typing import Any

from lora_opt.models.causal_lm import CausalLM, abstract_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import llama, rotary, windows
from lora_opt.models.pretrained.family import Family, TensorName

# The first config.json files of Gemma say gelu, but the model was trained with
# the approximation, and transformers came to read them so.
ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu_tanh'}

LAYER = llama.LAYER
NAMES3 = llama.NAMES | {
  'layers/attention/q_norm/scale': TensorName(
    f'{LAYER}.self_attn.q_norm.weight'
  ),
  'layers/attention/k_norm/scale': TensorName(
    f'{LAYER}.self_attn.k_norm.weight'
  ),
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


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type gemma."""
  sizes = _sizes(settings, kv_heads=16, max_length=8192)
  theta, divisors = rotary.scaling(settings, sizes['head_dim'])
  return DecoderConfig(**sizes, rope_theta=theta, rope_divisors=divisors)


def read_config3(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type gemma3_text."""
  for key in ('attn_logit_softcapping', 'final_logit_softcapping'):
    settings.expect(key, None)
  sizes = _sizes(settings, kv_heads=4, max_length=131_072)
  theta, local_theta, divisors = _rotary(settings, sizes['head_dim'])
  return DecoderConfig(
    **sizes,
    rope_theta=theta,
    rope_divisors=divisors,
    local_rope_theta=local_theta,
    qk_norm=True,
    post_norms=True,
    attention_scale=settings.number('query_pre_attn_scalar', 256) ** -0.5,
    window=settings.integer('sliding_window', 4096),
    windowed_layers=_windowed(settings, sizes['num_layers']),
  )


def _sizes(settings, **defaults):
  settings.expect('use_bidirectional_attention', False, None)
  # The newer name comes first.
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


def _windowed(settings, layers):
  """For each layer whether it is windowed."""
  pattern = settings.integer('_sliding_window_pattern', 6)
  pattern = settings.integer('sliding_window_pattern', pattern)
  return windows.by_layer(
    settings, tuple((layer + 1) % pattern != 0 for layer in range(layers))
  )


def _rotary(settings, head_dim):
  """Returns theta, theta of the windowed layers, and the divisors."""
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
  if rotary.divisors(local, local_theta, head_dim):
    local.refuse('rope_type', 'scaling of windowed layers', ('default',))
  return theta, local_theta, rotary.divisors(rope, theta, head_dim)


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads as this config."""
  return llama.common_settings(config) | {
    'architectures': ['GemmaForCausalLM'],
    'model_type': 'gemma',
    'hidden_act': 'gelu_pytorch_tanh',
    'hidden_activation': 'gelu_pytorch_tanh',
  }


def write_config3(config: DecoderConfig) -> dict[str, Any]:
  """The config.json that `read_config3` reads as this config."""
  return llama.common_settings(config) | {
    'architectures': ['Gemma3ForCausalLM'],
    'model_type': 'gemma3_text',
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': round(config.attention_scale**-2, 6),
    'rope_local_base_freq': config.local_rope_theta,
    'sliding_window': config.window,
    'layer_types': windows.layer_types(config),
  }


GEMMA = Family(
  read_config=read_config,
  harmless=('attention_dropout',),
  names=llama.NAMES,
  abstract_base=abstract_base,
  model=CausalLM,
  besides=llama.besides,
  prefix='model.',
  write_config=write_config,
)
GEMMA3 = GEMMA._replace(
  read_config=read_config3,
  # The hybrid cache of older transformers.
  harmless=('attention_dropout', 'cache_implementation'),
  names=NAMES3,
  write_config=write_config3,
)
