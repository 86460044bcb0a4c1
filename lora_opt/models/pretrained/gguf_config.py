"""GGUF's names and settings of the architectures that load from it."""

from collections.abc import Callable
from typing import NamedTuple

from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.families.gemma import GEMMA, GEMMA3
from lora_opt.models.pretrained.families.llama import LLAMA
from lora_opt.models.pretrained.family import Family, TensorName, linear

ROPE_DIVISORS = 'rope_freqs.weight'

# Our path: the name in a GGUF file.
NAMES = {
  'embedding/table': TensorName('token_embd.weight'),
  'head/table': TensorName('output.weight'),
  'final_norm/scale': TensorName('output_norm.weight'),
  'layers/attention_norm/scale': TensorName('blk.{}.attn_norm.weight'),
  'layers/attention_post_norm/scale': TensorName(
    'blk.{}.post_attention_norm.weight'
  ),
  'layers/mlp_norm/scale': TensorName('blk.{}.ffn_norm.weight'),
  'layers/mlp_post_norm/scale': TensorName('blk.{}.post_ffw_norm.weight'),
  'layers/attention/q_norm/scale': TensorName('blk.{}.attn_q_norm.weight'),
  'layers/attention/k_norm/scale': TensorName('blk.{}.attn_k_norm.weight'),
  'layers/attention/q/kernel': linear('blk.{}.attn_q.weight'),
  'layers/attention/k/kernel': linear('blk.{}.attn_k.weight'),
  'layers/attention/v/kernel': linear('blk.{}.attn_v.weight'),
  'layers/attention/o/kernel': linear('blk.{}.attn_output.weight'),
  'layers/mlp/gate/kernel': linear('blk.{}.ffn_gate.weight'),
  'layers/mlp/up/kernel': linear('blk.{}.ffn_up.weight'),
  'layers/mlp/down/kernel': linear('blk.{}.ffn_down.weight'),
}


class Architecture(NamedTuple):
  """What differs between the architectures in a GGUF file.

  Attributes:
    family: What the model's Hugging Face checkpoints are like.
    options: Returns the fields of `DecoderConfig` that Llama does not set,
      for a function that reads the architecture's keys.
    interleaved: Whether the rows of q and k are in the order of a rotation of
      neighbours, and not of halves.
    norm_offset: What the file has added to the scales of the norms.
  """

  family: Family
  options: Callable[[Callable], dict]
  interleaved: bool = False
  norm_offset: float = 0.0


GEMMA_OPTIONS = {
  'norm': 'rms_plus_one',
  'activation': 'gelu_tanh',
  'scale_embedding': True,
}


def _gemma3_options(get) -> dict:
  layers, heads = get('block_count'), get('attention.head_count')
  # The file does not say how queries are scaled: by the head's width, but in
  # the one with 62 layers by the share of a head in the whole width.
  scaled_by = get('attention.key_length')
  if layers == 62:
    scaled_by = get('embedding_length') // heads
  return GEMMA_OPTIONS | {
    'qk_norm': True,
    'post_norms': True,
    'attention_scale': scaled_by**-0.5,
    'window': get('attention.sliding_window'),
    'windowed_layers': tuple((i + 1) % 6 != 0 for i in range(layers)),
    'local_rope_theta': get('rope.freq_base_swa', 10_000.0),
  }


ARCHITECTURES = {
  'llama': Architecture(LLAMA, lambda get: {}, interleaved=True),
  'gemma': Architecture(GEMMA, lambda get: GEMMA_OPTIONS, norm_offset=1.0),
  'gemma3': Architecture(GEMMA3, _gemma3_options, norm_offset=1.0),
}


def read_gguf_config(
  path, field, tensors
) -> tuple[Architecture, DecoderConfig]:
  """Reads the sizes of a model from a GGUF file.

  Args:
    path: The file, for messages.
    field: Returns the value of a metadata key, or a default.
    tensors: The tensors by name.

  Raises:
    ValueError: If the architecture or a setting of it is not supported.
  """
  kind = field('general.architecture')
  if kind not in ARCHITECTURES:
    raise ValueError(
      f'{path} is of architecture {kind!r}; supported are '
      f'{", ".join(ARCHITECTURES)}'
    )

  def get(key, default=None):
    return field(f'{kind}.{key}', default)

  heads, width = get('attention.head_count'), get('embedding_length')
  head_dim = get('attention.key_length', width // heads)
  if get('rope.dimension_count', head_dim) != head_dim:
    raise ValueError(
      f'{path}: rotary positions over {get("rope.dimension_count")} of '
      f'{head_dim} dimensions are not supported'
    )
  sizes = {
    'vocab_size': get('vocab_size', len(field('tokenizer.ggml.tokens'))),
    'embed_dim': width,
    'num_layers': get('block_count'),
    'num_heads': heads,
    'num_kv_heads': get('attention.head_count_kv', heads),
    'head_dim': head_dim,
    'mlp_dim': get('feed_forward_length'),
    'rope_theta': get('rope.freq_base', 10_000.0),
    'rope_divisors': _rope_divisors(path, get, tensors, head_dim),
    'norm_eps': get('attention.layer_norm_rms_epsilon'),
    'tie_embeddings': 'output.weight' not in tensors,
    'max_length': get('context_length'),
  }
  architecture = ARCHITECTURES[kind]
  return architecture, DecoderConfig(**sizes, **architecture.options(get))


def _rope_divisors(path, get, tensors, head_dim):
  if ROPE_DIVISORS in tensors:
    return tuple(float(x) for x in tensors[ROPE_DIVISORS].data)
  kind = get('rope.scaling.type', 'none')
  if kind == 'linear':
    return (get('rope.scaling.factor'),) * (head_dim // 2)
  if kind != 'none':
    raise ValueError(f'{path}: rope scaling {kind!r} is not supported')
  return ()
