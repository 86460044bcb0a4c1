"""Llama 1, 2 and 3, SmolLM2 and Mistral."""

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
  'layers/mlp/gate/kernel': linear(f'{LAYER}.mlp.gate_proj.weight'),
  'layers/mlp/up/kernel': linear(f'{LAYER}.mlp.up_proj.weight'),
  'layers/mlp/down/kernel': linear(f'{LAYER}.mlp.down_proj.weight'),
}


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type llama or mistral."""
  get = settings.get
  settings.expect('hidden_act', 'silu')
  for key in ('attention_bias', 'mlp_bias'):
    settings.expect(key, False)
  settings.expect('sliding_window', None)
  heads = get('num_attention_heads')
  head_dim = get('head_dim', get('hidden_size') // heads)
  theta, divisors = rotary_scaling(settings, head_dim)
  return DecoderConfig(
    vocab_size=get('vocab_size'),
    embed_dim=get('hidden_size'),
    num_layers=get('num_hidden_layers'),
    num_heads=heads,
    num_kv_heads=get('num_key_value_heads', heads),
    head_dim=head_dim,
    mlp_dim=get('intermediate_size'),
    rope_theta=theta,
    rope_divisors=divisors,
    norm_eps=get('rms_norm_eps'),
    tie_embeddings=get('tie_word_embeddings', False),
    max_length=get('max_position_embeddings', 2048),
  )


def rotary_scaling(
  settings: ConfigFile, head_dim: int
) -> tuple[float, tuple[float, ...]]:
  """Returns theta and the divisors of the frequencies."""
  # transformers 5 keeps theta inside rope_parameters, older ones outside.
  outside = settings.get('rope_theta', 10_000.0)
  old = settings.get('rope_scaling', {})
  rope = settings.get('rope_parameters', old)
  theta = float(rope.get('rope_theta', outside))
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind == 'default':
    return theta, ()
  if kind == 'linear':
    return theta, (float(rope['factor']),) * (head_dim // 2)
  if kind != 'llama3':
    settings.refuse('rope scaling', kind, ('default', 'linear', 'llama3'))
  wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  turns = rope['original_max_position_embeddings'] / wavelengths
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  # 0 for wavelengths beyond the original context, 1 for short ones.
  smooth = np.clip((turns - low) / (high - low), 0, 1)
  frequency = (1 - smooth) / rope['factor'] + smooth
  return theta, tuple(float(x) for x in 1 / frequency)


def ignored(config: DecoderConfig) -> str:
  """Rotary frequencies of old files, and the copy of a tied embedding."""
  buffers = r'.*rotary_emb\.inv_freq'
  return rf'{buffers}|lm_head\.weight' if config.tie_embeddings else buffers


LLAMA = Family(
  read_config=read_config,
  harmless=('attention_dropout', 'pretraining_tp', 'rope_interleaved'),
  names=NAMES,
  abstract_base=abstract_base,
  model=CausalLM,
  ignored=ignored,
  prefix='model.',
)
