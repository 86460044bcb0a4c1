"""Llama 1, 2 and 3, SmolLM2 and Mistral."""

import functools
from typing import Any

import numpy as np

from lora_opt.models.causal_lm import CausalLM, abstract_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.fields import BOUNDS
from lora_opt.models.pretrained.besides import Besides, Buffer, Copy
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import rotary
from lora_opt.models.pretrained.family import Family, TensorName, linear
from lora_opt.models.pretrained.formats import HUGGING_FACE
from lora_opt.reading import values

LAYER = 'model.layers.{}'

# Also used by the later families that kept Llama's names.
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
# The norms of queries and keys, for families that have them.
QK_NORMS = {
  f'layers/attention/{ours}_norm/scale': TensorName(
    f'{LAYER}.self_attn.{ours}_norm.weight'
  )
  for ours in 'qk'
}


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type llama or mistral."""
  if settings.text('model_type', 'llama') == 'mistral':
    # The defaults of transformers' class for Mistral.
    fields = sizes(settings, kv_heads=8, max_length=131_072)
    window = 0  # null in the later Mistrals
    if not settings.is_null('sliding_window'):
      window = settings.integer('sliding_window', 4096)
  else:
    fields, window = sizes(settings), 0
  return DecoderConfig(
    **fields,
    **rotary.scaling(settings, fields),
    tie_embeddings=settings.boolean('tie_word_embeddings', False),
    activation=settings.choose('hidden_act', {'silu': 'silu'}, 'silu'),
    attention_bias=settings.boolean('attention_bias', False),
    mlp_bias=settings.boolean('mlp_bias', False),
    window=window,
    windowed_layers=(True,) * fields['num_layers'] if window else (),
  )


def sizes(
  settings: ConfigFile,
  *,
  kv_heads: int | None = None,
  head_dim: int | None = None,
  max_length: int = 2048,
) -> dict[str, Any]:
  """Reads the fields of `DecoderConfig` that all Llama-like models share.

  Args:
    settings: The file.
    kv_heads: Used if num_key_value_heads is absent; None for as many as there
      are heads.
    head_dim: Used if head_dim is absent; None for the width divided by the
      number of heads.
    max_length: Used if max_position_embeddings is absent.
  """
  integer = settings.integer
  layers = integer('num_hidden_layers', most=BOUNDS['num_layers'][1])
  heads = integer('num_attention_heads')
  if head_dim is not None:
    head_dim = integer('head_dim', head_dim)
  elif 'head_dim' in settings:
    head_dim = integer('head_dim')
  else:
    head_dim = settings.quotient('hidden_size', 'num_attention_heads')
  # Checked before work that grows with it.
  values.integer(head_dim, f'{settings.place}: head_dim', *BOUNDS['head_dim'])
  if settings.is_null('num_key_value_heads'):
    kv_heads = heads
  return {
    'vocab_size': integer('vocab_size'),
    'embed_dim': integer('hidden_size'),
    'num_layers': layers,
    'num_heads': heads,
    'num_kv_heads': integer(
      'num_key_value_heads', kv_heads or heads, null=True
    ),
    'head_dim': head_dim,
    'mlp_dim': integer('intermediate_size'),
    'norm_eps': settings.number('rms_norm_eps'),
    'max_length': integer('max_position_embeddings', max_length),
  }


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config`.

  Raises:
    ValueError: If the settings of the rotary scaling cannot be derived from the
      divisors, as for Llama 3.
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
  """The settings that all Llama-like models share; see `write_config`."""
  c = config
  return rotary.written(c) | {
    'vocab_size': c.vocab_size,
    'hidden_size': c.embed_dim,
    'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads,
    'num_key_value_heads': c.num_kv_heads,
    'head_dim': c.head_dim,
    'intermediate_size': c.mlp_dim,
    'attention_bias': c.attention_bias,
    'rms_norm_eps': c.norm_eps,
    'tie_word_embeddings': c.tie_embeddings,
    'max_position_embeddings': c.max_length,
  }


def besides(config: DecoderConfig) -> Besides:
  """Rotary frequencies in old files, and the copy of a tied embedding."""
  layer = r'(layers\.\d+\.self_attn\.)?'
  buffer = Buffer(
    functools.partial(_are_frequencies, config),
    'the rotary frequencies of rope_theta and the scaling of positions',
  )
  found = {rf'(model\.)?{layer}rotary_emb\.inv_freq': buffer}
  if config.tie_embeddings:
    found[r'lm_head\.weight'] = Copy('model.embed_tokens.weight')
  return found


def _are_frequencies(config: DecoderConfig, x: np.ndarray) -> bool:
  """Whether a buffer has the frequencies of a config, scaled or not."""
  width = config.rotary_dim or config.head_dim
  powers = np.arange(0, width, 2) / width
  if x.shape != powers.shape:
    return False
  thetas = {config.rope_theta, config.local_rope_theta or config.rope_theta}
  # They may be stored in half precision, or have been rounded to it before.
  near = functools.partial(np.allclose, x, rtol=2**-7, atol=1e-7)
  return any(
    near(theta**-powers / divisors)
    for theta in thetas
    for divisors in (1.0, np.array(config.rope_divisors or 1.0))
  )


LLAMA = Family(
  read_config=read_config,
  harmless=(
    *('attention_dropout', 'classifier_dropout', 'is_llama_config'),
    *('max_sequence_length', 'pretraining_tp', 'rope_interleaved'),
  ),
  names=NAMES,
  abstract_base=abstract_base,
  model=CausalLM,
  files=HUGGING_FACE,
  besides=besides,
  prefix='model.',
  write_config=write_config,
)
