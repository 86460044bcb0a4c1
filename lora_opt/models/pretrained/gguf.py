"""Llama-family models from GGUF files."""

import functools
import os
import pathlib
from typing import Any

import numpy as np
from gguf import quants

from lora_opt.data.gguf_file import field, open_gguf
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.causal_lm import CausalLM, abstract_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.frozen import quantized_paths, with_base
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.assemble import assemble
from lora_opt.models.pretrained.families.llama import LLAMA
from lora_opt.models.pretrained.family import TensorName, linear
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.placing import shardings_of

ROPE_DIVISORS = 'rope_freqs.weight'

# Our path: the name in a GGUF file.
NAMES = {
  'embedding/table': TensorName('token_embd.weight'),
  'head/table': TensorName('output.weight'),
  'final_norm/scale': TensorName('output_norm.weight'),
  'layers/attention_norm/scale': TensorName('blk.{}.attn_norm.weight'),
  'layers/mlp_norm/scale': TensorName('blk.{}.ffn_norm.weight'),
  'layers/attention/q/kernel': linear('blk.{}.attn_q.weight'),
  'layers/attention/k/kernel': linear('blk.{}.attn_k.weight'),
  'layers/attention/v/kernel': linear('blk.{}.attn_v.weight'),
  'layers/attention/o/kernel': linear('blk.{}.attn_output.weight'),
  'layers/mlp/gate/kernel': linear('blk.{}.ffn_gate.weight'),
  'layers/mlp/up/kernel': linear('blk.{}.ffn_up.weight'),
  'layers/mlp/down/kernel': linear('blk.{}.ffn_down.weight'),
}


def from_gguf(
  path: str | os.PathLike,
  *,
  lora: LoraConfig | None = None,
  name: str | None = None,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  partitioner: Any | None = None,
  quantize: str | None = None,
) -> CausalLM:
  """Loads a Llama-family model, dequantized, with the tokenizer inside.

  Args:
    path: The .gguf file.
    lora: Adapter settings, None for none.
    name: Name of the model, by default the path.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    partitioner: Places the weights on a mesh, see `from_folder`.
    quantize: 'int8', 'int4' or 'nf4' keeps the kernels of projections in so few
      bits, see `quantize_kernel`; None keeps them in `param_dtype`.

  Returns:
    The model.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is damaged or cut short, is not of the Llama
      architecture, or does not fit the settings.
  """
  path = pathlib.Path(path)
  reader = open_gguf(path)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  config = _config(path, reader, tensors)
  stored = param_dtype or dtype
  check_dtype(stored)
  # Made before the weights are there, so that a misfit costs no loading.
  model = CausalLM(
    name=name or str(path),
    family=LLAMA,
    config=config,
    tokenizer=Tokenizer.from_gguf(reader),
    base=abstract_base(config),
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
  )

  def stored_tensor(key, tensor) -> StoredTensor:
    # GGUF lists dimensions fastest first, the reverse of NumPy.
    shape = tuple(int(size) for size in tensor.shape[::-1])
    read = functools.partial(_read, path, tensor, config)
    return StoredTensor(path, key, shape, np.dtype(np.float32), read)

  stored_tensors = {
    key: stored_tensor(key, tensor)
    for key, tensor in tensors.items()
    if key != ROPE_DIVISORS
  }
  base = assemble(
    str(path),
    model.base,
    NAMES,
    stored_tensors,
    stored,
    shardings_of(model, partitioner),
    quantized_paths(model, quantize),
  )
  return with_base(model, base, quantize)


def _config(path, reader, tensors) -> DecoderConfig:
  architecture = field(reader, 'general.architecture')
  if architecture != 'llama':
    raise ValueError(
      f'{path} is of architecture {architecture!r}; only llama is supported'
    )

  def get(key, default=None):
    return field(reader, f'llama.{key}', default)

  if get('rope.scaling.type', 'none') != 'none':
    raise ValueError(
      f'{path}: rope scaling {get("rope.scaling.type")!r} is not supported'
    )
  heads, width = get('attention.head_count'), get('embedding_length')
  head_dim = get('attention.key_length', width // heads)
  if get('rope.dimension_count', head_dim) != head_dim:
    raise ValueError(
      f'{path}: rotary positions over {get("rope.dimension_count")} of '
      f'{head_dim} dimensions are not supported'
    )
  divisors = ()
  if ROPE_DIVISORS in tensors:
    divisors = tuple(float(x) for x in tensors[ROPE_DIVISORS].data)
  return DecoderConfig(
    vocab_size=get('vocab_size', len(field(reader, 'tokenizer.ggml.tokens'))),
    embed_dim=width,
    num_layers=get('block_count'),
    num_heads=heads,
    num_kv_heads=get('attention.head_count_kv', heads),
    head_dim=head_dim,
    mlp_dim=get('feed_forward_length'),
    rope_theta=get('rope.freq_base', 10_000.0),
    rope_divisors=divisors,
    norm_eps=get('attention.layer_norm_rms_epsilon'),
    tie_embeddings='output.weight' not in tensors,
    max_length=get('context_length'),
  )


def _read(path, tensor, config: DecoderConfig) -> np.ndarray:
  """Returns a tensor dequantized, in the row order of Hugging Face."""
  try:
    weight = quants.dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError as error:
    raise ValueError(
      f'{path}: tensor {tensor.name} is of type {tensor.tensor_type.name}, '
      'which the package gguf cannot dequantize'
    ) from error
  if tensor.name.endswith('attn_q.weight'):
    return _unpermute(weight, config.num_heads)
  if tensor.name.endswith('attn_k.weight'):
    return _unpermute(weight, config.num_kv_heads)
  return weight


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Undoes the row order that GGUF gives q and k for interleaved rotary."""
  rows = weight.reshape(heads, -1, 2, weight.shape[1])
  return rows.swapaxes(1, 2).reshape(weight.shape)
