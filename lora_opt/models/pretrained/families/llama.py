"""Llama 1, 2 and 3, SmolLM2 and Mistral."""

from typing import Any

import numpy as np

from lora_opt.models.causal_lm import CausalLM, abstract_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.family import Family, TensorName, linear

LAYER = 'model.layers.{}'

# Also the names of every later family that kept Llama's.
NAMES = {
  'embedding/table': TensorName('model.embed_tokens.weight'),
  'head/table': TensorName('lm_head.weight'),
  'final_norm/scale': TensorName('model.norm.weight'),
  'layers/attention_norm/scale': TensorName(f'{LAYER}.input_layernorm.weight'),
  'layers/mlp_norm/scale': TensorName(
    f'{LAYER}.post_attention_layernorm.weight'
  ),
  'layers/attention/q/kernel': linear(f'{LAYER}.self_attn.q_proj.weight'),
  'layers/attention/k/kernel': linear(f'{LAYER}.self_attn.k_proj.weight'),
  'layers/attention/v/kernel': linear(f'{LAYER}.self_attn.v_proj.weight'),
  'layers/attention/o/kernel': linear(f'{LAYER}.self_attn.o_proj.weight'),
  **{
    f'layers/attention/{ours}/bias': TensorName(
      f'{LAYER}.self_attn.{ours}_proj.bias'
    )
    for ours in 'qkvo'
  },
  'layers/mlp/gate/kernel': linear(f'{LAYER}.mlp.gate_proj.weight'),
  'layers/mlp/up/kernel': linear(f'{LAYER}.mlp.up_proj.weight'),
  'layers/mlp/down/kernel': linear(f'{LAYER}.mlp.down_proj.weight'),
  **{
    f'layers/mlp/{ours}/bias': TensorName(f'{LAYER}.mlp.{ours}_proj.bias')
    for ours in ('gate', 'up', 'down')
  },
}

# Of each recipe of rotary scaling, its parameters; and what any may have.
ROPE_PARAMETERS = {
  'default': set(),
  'linear': {'factor'},
  'llama3': {
    *('factor', 'low_freq_factor', 'high_freq_factor'),
    'original_max_position_embeddings',
  },
}
ROPE_ALWAYS = {
  *('rope_type', 'type', 'rope_theta'),
  'original_max_position_embeddings',
}


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type llama or mistral."""
  get = settings.get
  layers, window = get('num_hidden_layers'), 0
  if get('model_type') == 'mistral':
    # Null in the later Mistrals: no window.
    default = 0 if settings.is_null('sliding_window') else 4096
    window = get('sliding_window', default)
  theta, divisors = rotary_scaling(settings, head_dim(settings))
  return DecoderConfig(
    **sizes(settings),
    rope_theta=theta,
    rope_divisors=divisors,
    tie_embeddings=get('tie_word_embeddings', False),
    activation=settings.choose('hidden_act', {'silu': 'silu'}, 'silu'),
    attention_bias=get('attention_bias', False),
    mlp_bias=get('mlp_bias', False),
    window=window,
    windowed_layers=(True,) * layers if window else (),
  )


def sizes(settings: ConfigFile) -> dict[str, int | float]:
  """The fields of `DecoderConfig` that Llama and its kin name alike."""
  get = settings.get
  heads = get('num_attention_heads')
  return {
    'vocab_size': get('vocab_size'),
    'embed_dim': get('hidden_size'),
    'num_layers': get('num_hidden_layers'),
    'num_heads': heads,
    'num_kv_heads': get('num_key_value_heads', heads),
    'head_dim': head_dim(settings),
    'mlp_dim': get('intermediate_size'),
    'norm_eps': get('rms_norm_eps'),
    'max_length': get('max_position_embeddings', 2048),
  }


def head_dim(settings: ConfigFile) -> int:
  """Width of a head, which old files leave out."""
  get = settings.get
  return get('head_dim', get('hidden_size') // get('num_attention_heads'))


def rotary_scaling(
  settings: ConfigFile, head_dim: int
) -> tuple[float, tuple[float, ...]]:
  """Returns theta and the divisors of the frequencies."""
  # transformers 5 keeps theta inside rope_parameters, older ones outside.
  outside = settings.get('rope_theta', 10_000.0)
  old = settings.get('rope_scaling', {})
  rope = settings.get('rope_parameters', old)
  theta = float(rope.get('rope_theta', outside))
  return theta, rotary_divisors(settings, rope, theta, head_dim)


def rotary_divisors(
  settings: ConfigFile, rope: dict, theta: float, head_dim: int
) -> tuple[float, ...]:
  """The divisors of the frequencies that a scaling recipe stands for.

  Args:
    settings: For messages.
    rope: The recipe: rope_type and its parameters.
    theta: Base of the wavelengths.
    head_dim: Width of a head.
  """
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind not in ROPE_PARAMETERS:
    settings.refuse('rope scaling', kind, ROPE_PARAMETERS)
  needed = ROPE_PARAMETERS[kind]
  missing = needed - rope.keys()
  unknown = {k for k, v in rope.items() if v is not None} - needed - ROPE_ALWAYS
  if missing or unknown:
    raise ValueError(
      f'{settings.path}: rope scaling {kind!r} has the parameters '
      f'{", ".join(sorted(needed)) or "none"}; missing: '
      f'{", ".join(sorted(missing)) or "none"}, unknown: '
      f'{", ".join(sorted(unknown)) or "none"}'
    )
  if kind == 'default':
    return ()
  if kind == 'linear':
    return (float(rope['factor']),) * (head_dim // 2)
  wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  turns = rope['original_max_position_embeddings'] / wavelengths
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  # 0 for wavelengths beyond the original context, 1 for short ones.
  smooth = np.clip((turns - low) / (high - low), 0, 1)
  frequency = (1 - smooth) / rope['factor'] + smooth
  return tuple(float(x) for x in 1 / frequency)


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The config.json that `read_config` reads as this config.

  Raises:
    ValueError: For the Llama 3 scaling of positions, whose settings do not
      follow from the divisors.
  """
  c = config
  kind = 'mistral' if c.window else 'llama'
  return common_settings(c) | {
    'architectures': [f'{kind.title()}ForCausalLM'],
    'model_type': kind,
    'hidden_act': c.activation,
    'mlp_bias': c.mlp_bias,
    **({'sliding_window': c.window} if c.window else {}),
  }


def common_settings(config: DecoderConfig) -> dict[str, Any]:
  """The settings that Llama and its kin name alike; see `write_config`."""
  c, factors = config, set(config.rope_divisors)
  if len(factors) > 1:
    raise ValueError(
      'rope_divisors that differ from each other have no config.json; give the '
      'folder the model came from'
    )
  linear_scaling = {'rope_type': 'linear', 'factor': max(factors, default=1.0)}
  return {
    'vocab_size': c.vocab_size,
    'hidden_size': c.embed_dim,
    'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads,
    'num_key_value_heads': c.num_kv_heads,
    'head_dim': c.head_dim,
    'intermediate_size': c.mlp_dim,
    'attention_bias': c.attention_bias,
    'rms_norm_eps': c.norm_eps,
    'rope_theta': c.rope_theta,
    'rope_scaling': linear_scaling if factors else None,
    'tie_word_embeddings': c.tie_embeddings,
    'max_position_embeddings': c.max_length,
  }


def ignored(config: DecoderConfig) -> str:
  """Rotary frequencies of old files, and the copy of a tied embedding."""
  buffers = r'.*rotary_emb\.inv_freq'
  return rf'{buffers}|lm_head\.weight' if config.tie_embeddings else buffers


LLAMA = Family(
  read_config=read_config,
  harmless=(
    *('attention_dropout', 'is_llama_config', 'max_sequence_length'),
    *('pretraining_tp', 'rope_interleaved'),
  ),
  names=NAMES,
  abstract_base=abstract_base,
  model=CausalLM,
  ignored=ignored,
  prefix='model.',
  write_config=write_config,
)
