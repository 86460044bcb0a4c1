"""GGUF files: their metadata, and their tensors as stored."""

from __future__ import annotations

import mmap
import os
import pathlib
from typing import Any

import gguf
import numpy as np

from lora_opt.data.gguf_header import GGUFTensor, read_header
from lora_opt.reading.files import check_file
from lora_opt.reading.values import plain, shown

# NumPy types of the tensor types that are not quantized.
_PLAIN = {
  'F32': '<f4',
  'F16': '<f2',
  'F64': '<f8',
  'I8': '<i1',
  'I16': '<i2',
  'I32': '<i4',
  'I64': '<i8',
}


class GGUFFile:
  """The metadata and the list of tensors of a GGUF file.

  Attributes:
    path: The file.
    fields: Metadata values by key: texts as bytes, arrays as NumPy arrays or
      lists.
    tensors: Tensors by name.

  Raises:
    FileNotFoundError: If there is no such file.
    OSError: If it cannot be read.
    ValueError: If it is damaged, cut short or not a GGUF file.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if not self.path.exists():
      raise FileNotFoundError(f'no GGUF file at {self.path}')
    size = check_file(self.path)
    with self.path.open('rb') as stream:
      if stream.read(4) != b'GGUF':
        raise ValueError(f'{self.path} ({size} bytes) is not a GGUF file')
      data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with data:
      try:
        self.fields, self.tensors = read_header(data)
      except ValueError as error:
        raise ValueError(
          f'{self.path} ({size} bytes) is not a complete GGUF file: {error}'
        ) from None

  def value(self, key: str, default: Any = None) -> Any:
    """The value of a metadata key, of any type.

    Raises:
      ValueError: The key is missing and there is no default, or a text is not
        UTF-8.
    """
    if key not in self.fields:
      if default is None:
        raise ValueError(f'{self.path} has no metadata key {plain(key)}')
      return default
    found = self.fields[key]
    try:
      if isinstance(found, bytes):
        return found.decode()
      if isinstance(found, list):
        return [
          one.decode() if isinstance(one, bytes) else one for one in found
        ]
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{self.path}: {plain(key)}: not UTF-8: {shown(error.object)}'
      ) from None
    return found.tolist() if isinstance(found, np.ndarray) else found

  def read(self, tensor: GGUFTensor) -> np.ndarray:
    """A tensor's numbers, or the bytes of its rows if it is quantized."""
    plain_type = _PLAIN.get(tensor.kind.name)
    shape = tensor.shape
    if plain_type is None:
      block, width = gguf.GGML_QUANT_SIZES[tensor.kind]
      shape = (*shape[:-1], shape[-1] // block * width)
    dtype = np.dtype(plain_type or np.uint8)
    if tensor.begin == tensor.end:  # an empty mapping is not allowed
      return np.empty(shape, dtype)
    return np.asarray(np.memmap(self.path, dtype, 'r', tensor.begin, shape))


def open_gguf(path: str | os.PathLike) -> GGUFFile:
  """Opens a GGUF file; see `GGUFFile`."""
  return GGUFFile(path)


def field(file: GGUFFile, key: str, default: Any = None) -> Any:
  """Value of a metadata key; ValueError if it and the default are missing."""
  return file.value(key, default)
