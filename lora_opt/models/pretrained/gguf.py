"""Models of the Llama and Gemma families from GGUF files."""

import functools
import os
from typing import Any

import numpy as np
from gguf import quants

from lora_opt.data.gguf_file import GGUFFile, open_gguf
from lora_opt.data.gguf_header import GGUFTensor
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.causal_lm import CausalLM, abstract_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.frozen import quantized_paths, with_base
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.assemble import assemble
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.gguf_config import (
  NAMES,
  ROPE_DIVISORS,
  Architecture,
  read_gguf_config,
)
from lora_opt.models.pretrained.placing import shardings_of
from lora_opt.reading.copies import local_copy
from lora_opt.reading.values import plain


def from_gguf(
  path: str | os.PathLike,
  *,
  lora: LoraConfig | None = None,
  name: str | None = None,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  partitioner: Any | None = None,
  quantize: str | None = None,
) -> CausalLM:
  """Loads a Llama, Gemma or Gemma 3 model, dequantized, with its tokenizer.

  Args:
    path: The .gguf file.
    lora: Adapter settings, None for none.
    name: Name of the model, by default the path.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    partitioner: Places the weights on a mesh, see `from_folder`.
    quantize: 'int8', 'int4' or 'nf4' quantizes the kernels of projections, see
      `quantize_kernel`; None keeps them in `param_dtype`.

  Returns:
    The model.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is damaged or cut short, is of another
      architecture, or does not fit the settings.
  """
  path = local_copy(path, what='path')
  file = open_gguf(path)
  architecture, config = read_gguf_config(file)
  stored = param_dtype or dtype
  check_dtype(stored)
  # Built before the weights are read, so that wrong settings fail early.
  model = CausalLM(
    name=name or str(path),
    family=architecture.family,
    config=config,
    tokenizer=Tokenizer.from_gguf(file),
    base=abstract_base(config),
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
  )

  stored_tensors = {
    key: StoredTensor(
      path,
      key,
      tensor.shape,
      np.dtype(np.float32),
      functools.partial(_read, file, tensor, architecture, config),
    )
    for key, tensor in file.tensors.items()
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


def _read(
  file: GGUFFile,
  tensor: GGUFTensor,
  architecture: Architecture,
  config: DecoderConfig,
) -> np.ndarray:
  """Dequantizes a tensor; returns what Hugging Face would have stored."""
  try:
    # Damaged scales overflow; `assemble` detects the values that result.
    with np.errstate(all='ignore'):
      weight = quants.dequantize(file.read(tensor), tensor.kind)
  except NotImplementedError as error:
    raise ValueError(
      f'{file.path}: tensor {plain(tensor.name)} is of type '
      f'{tensor.kind.name}, which the package gguf cannot dequantize'
    ) from error
  if tensor.name.endswith('norm.weight'):
    return weight - np.float32(architecture.norm_offset)
  if architecture.interleaved and tensor.name.endswith('attn_q.weight'):
    return _unpermute(weight, config.num_heads)
  if architecture.interleaved and tensor.name.endswith('attn_k.weight'):
    return _unpermute(weight, config.num_kv_heads)
  return weight


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Undoes the row order that GGUF gives q and k for interleaved rotary."""
  rows = weight.reshape(heads, -1, 2, weight.shape[1])
  return rows.swapaxes(1, 2).reshape(weight.shape)
