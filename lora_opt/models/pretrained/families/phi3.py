"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini, with fused projections."""

import math
from typing import Any

from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import llama, rotary
from lora_opt.models.pretrained.family import linear

SPLIT = [f'layers/attention/{ours}' for ours in 'qkv']
SPLIT += ['layers/mlp/gate', 'layers/mlp/up']
NAMES = {
  **{
    path: name
    for path, name in llama.NAMES.items()
    if not path.endswith('/bias') and path.rpartition('/')[0] not in SPLIT
  },
  'layers/attention/qkv/kernel': linear(
    f'{llama.LAYER}.self_attn.qkv_proj.weight'
  ),
  'layers/mlp/gate_up/kernel': linear(f'{llama.LAYER}.mlp.gate_up_proj.weight'),
}
# The first files have other names for LongRoPE.
ROPE_KINDS = {
  'default': 'default',
  'longrope': 'longrope',
  'su': 'longrope',
  'yarn': 'longrope',
}


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type phi3."""
  for key in ('attention_bias', 'mlp_bias', 'lm_head_bias'):
    settings.expect(key, False)
  for key in ('full_attn_mod', 'interpolate_factor'):
    settings.expect(key, 1)
  fields = llama.sizes(settings, max_length=4096)
  window = settings.integer('sliding_window', 0, null=True)
  if window >= fields['max_length']:
    window = 0  # nothing is outside the window
  return DecoderConfig(
    **fields,
    **_rotary(settings, fields),
    tie_embeddings=settings.boolean('tie_word_embeddings', False),
    activation=settings.choose('hidden_act', {'silu': 'silu'}, 'silu'),
    fused_qkv=True,
    fused_gate=True,
    window=window,
    windowed_layers=(True,) * fields['num_layers'] if window else (),
  )


def _rotary(settings, sizes):
  """Reads the rotary fields; only the first dimensions may be rotated."""
  rope, head_dim = rotary.section(settings), sizes['head_dim']
  theta = rotary.base(settings, rope, 'rope_theta', 10_000.0)
  share = settings.number('partial_rotary_factor', 1.0, most=1, null=True)
  share = rope.number('partial_rotary_factor', share, most=1, null=True)
  width = int(head_dim * share)
  fields = rotary.recipe(
    rope,
    theta,
    width=width,
    length=sizes['max_length'],
    original=settings.integer('original_max_position_embeddings', 4096),
    kinds=ROPE_KINDS,
    besides=('partial_rotary_factor',),
  )
  if width != head_dim:
    fields['rotary_dim'] = width
  return {'rope_theta': theta, **fields}


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config`."""
  c = config
  if c.rope_divisors or c.dynamic_rope is not None:
    raise ValueError(
      'rope_divisors have no config.json of model_type phi3; give the folder '
      'the model came from'
    )
  share = (c.rotary_dim or c.head_dim) / c.head_dim
  if int(c.head_dim * share) != (c.rotary_dim or c.head_dim):
    share = math.nextafter(share, 1)
  return llama.common_settings(c) | {
    'architectures': ['Phi3ForCausalLM'],
    'model_type': 'phi3',
    'hidden_act': c.activation,
    'original_max_position_embeddings': c.max_length,
    'partial_rotary_factor': share,
    'sliding_window': c.window or None,
  }


PHI3 = llama.LLAMA._replace(
  read_config=read_config,
  harmless=('attention_dropout', 'embd_pdrop', 'resid_pdrop'),
  names=NAMES,
  write_config=write_config,
)
