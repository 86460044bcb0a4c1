"""Names and settings in GGUF files, for the supported architectures."""

from collections.abc import Callable
from typing import NamedTuple

from lora_opt.data.gguf_file import GGUFFile
from lora_opt.models.config import DecoderConfig
from lora_opt.models.fields import BOUNDS
from lora_opt.models.pretrained.families.gemma import GEMMA, GEMMA3
from lora_opt.models.pretrained.families.llama import LLAMA
from lora_opt.models.pretrained.family import Family, TensorName, linear
from lora_opt.reading import values
from lora_opt.reading.values import shown

ROPE_DIVISORS = 'rope_freqs.weight'
MOST_LAYERS = BOUNDS['num_layers'][1]

# Maps our paths to the names in a GGUF file.
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


class Settings:
  """Reads the metadata of one architecture in a GGUF file, with type checks."""

  def __init__(self, file: GGUFFile, kind: str):
    self._file, self._kind = file, kind

  def integer(self, key: str, default: int | None = None, most: int = 2**30):
    """Returns a whole number of at least 1."""
    return values.integer(
      self._file.value(f'{self._kind}.{key}', default),
      f'{self._file.path}: {self._kind}.{key}',
      least=1,
      most=most,
    )

  def number(self, key: str, default: float | None = None) -> float:
    """Returns a finite number above zero."""
    return values.number(
      self._file.value(f'{self._kind}.{key}', default),
      f'{self._file.path}: {self._kind}.{key}',
      above=0,
    )

  def text(self, key: str, default: str | None = None) -> str:
    """Returns a string."""
    return values.text(
      self._file.value(f'{self._kind}.{key}', default),
      f'{self._file.path}: {self._kind}.{key}',
    )


class Architecture(NamedTuple):
  """What differs between the architectures in a GGUF file.

  Attributes:
    family: The family of the model's Hugging Face checkpoints.
    options: Returns the fields of `DecoderConfig` that Llama does not set,
      for the `Settings` of the file.
    interleaved: Whether the rows of q and k are ordered for rotary embeddings
      that rotate neighbouring dimensions instead of the two halves of a head.
    norm_offset: Constant that the file has added to the scales of the norms.
  """

  family: Family
  options: Callable[[Settings], dict]
  interleaved: bool = False
  norm_offset: float = 0.0


GEMMA_OPTIONS = {
  'norm': 'rms_plus_one',
  'activation': 'gelu_tanh',
  'scale_embedding': True,
}


def _gemma3_options(get: Settings) -> dict:
  layers = get.integer('block_count', most=MOST_LAYERS)
  # The file does not store the scale of the scores. It is head_dim**-0.5, but
  # (embed_dim / num_heads)**-0.5 in the model with 62 layers.
  scaled_by = get.integer('attention.key_length')
  if layers == 62:
    heads = get.integer('attention.head_count')
    scaled_by = get.integer('embedding_length') // heads
  return GEMMA_OPTIONS | {
    'qk_norm': True,
    'post_norms': True,
    'attention_scale': scaled_by**-0.5,
    'window': get.integer('attention.sliding_window'),
    'windowed_layers': tuple((i + 1) % 6 != 0 for i in range(layers)),
    'local_rope_theta': get.number('rope.freq_base_swa', 10_000.0),
  }


ARCHITECTURES = {
  'llama': Architecture(LLAMA, lambda get: {}, interleaved=True),
  'gemma': Architecture(GEMMA, lambda get: GEMMA_OPTIONS, norm_offset=1.0),
  'gemma3': Architecture(GEMMA3, _gemma3_options, norm_offset=1.0),
}


def read_gguf_config(file: GGUFFile) -> tuple[Architecture, DecoderConfig]:
  """Reads the sizes of a model from a GGUF file.

  Args:
    file: The file, with its tensors.

  Raises:
    ValueError: If the architecture or a setting of it is not supported, or a
      setting is of the wrong type or out of bounds.
  """
  path = file.path
  key = f'{path}: general.architecture'
  kind = values.text(file.value('general.architecture'), key)
  if kind not in ARCHITECTURES:
    raise ValueError(
      f'{path} is of architecture {shown(kind)}; supported are '
      f'{", ".join(ARCHITECTURES)}'
    )
  get = Settings(file, kind)
  heads = get.integer('attention.head_count')
  width = get.integer('embedding_length')
  head_dim = get.integer('attention.key_length', width // heads)
  rotated = get.integer('rope.dimension_count', head_dim)
  if rotated != head_dim:
    raise ValueError(
      f'{path}: rotary positions over {rotated} of {head_dim} dimensions are '
      'not supported'
    )
  tokens = 'tokenizer.ggml.tokens'
  tokens = values.items(file.value(tokens), f'{path}: {tokens}')
  sizes = {
    'vocab_size': get.integer('vocab_size', len(tokens)),
    'embed_dim': width,
    'num_layers': get.integer('block_count', most=MOST_LAYERS),
    'num_heads': heads,
    'num_kv_heads': get.integer('attention.head_count_kv', heads),
    'head_dim': head_dim,
    'mlp_dim': get.integer('feed_forward_length'),
    'rope_theta': get.number('rope.freq_base', 10_000.0),
    'rope_divisors': _rope_divisors(file, get, head_dim),
    'norm_eps': get.number('attention.layer_norm_rms_epsilon'),
    'tie_embeddings': 'output.weight' not in file.tensors,
    'max_length': get.integer('context_length'),
  }
  architecture = ARCHITECTURES[kind]
  try:
    config = DecoderConfig(**sizes, **architecture.options(get))
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  return architecture, config


def _rope_divisors(file, get, head_dim) -> tuple[float, ...]:
  if tensor := file.tensors.get(ROPE_DIVISORS):
    if tensor.kind.name != 'F32' or tensor.shape != (head_dim // 2,):
      raise ValueError(
        f'{file.path}: tensor {ROPE_DIVISORS} is {tensor.kind.name} of shape '
        f'{tensor.shape}, expected F32 of shape {(head_dim // 2,)}'
      )
    return tuple(float(x) for x in file.read(tensor))
  kind = get.text('rope.scaling.type', 'none')
  if kind == 'linear':
    return (get.number('rope.scaling.factor'),) * (head_dim // 2)
  if kind != 'none':
    raise ValueError(
      f'{file.path}: rope scaling {shown(kind)} is not supported'
    )
  return ()
