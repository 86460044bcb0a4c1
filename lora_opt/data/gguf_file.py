"""Opening GGUF files, with clear errors for damaged ones."""

import os
import pathlib

import gguf
import numpy as np


class _CheckedReader(gguf.GGUFReader):
  """Looks at the size of the file before it maps the tensors."""

  @property
  def data(self) -> np.ndarray:
    """The bytes of the file."""
    return self._data

  @data.setter
  def data(self, mapped: np.memmap):
    # The vocabulary is read with a million slices, which are slow on a memmap
    # and fast on a plain view of it.
    self._data = np.asarray(mapped)

  def _build_tensors(self, start_offs, fields):
    actual = self.data.nbytes
    for field in fields:
      _, name, _, dims, kind, offset = field.parts
      block, block_bytes = gguf.GGML_QUANT_SIZES[
        gguf.GGMLQuantizationType(kind[0])
      ]
      size = int(np.prod(dims, dtype=np.uint64)) // block * block_bytes
      expected = start_offs + int(offset[0]) + size
      if expected > actual:
        raise ValueError(
          f'cut short: {actual} bytes, tensor {bytes(name).decode()} alone '
          f'needs {expected}; get the file again'
        )
    super()._build_tensors(start_offs, fields)


def open_gguf(path: str | os.PathLike) -> gguf.GGUFReader:
  """Opens a GGUF file after checking that it is there and complete.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is not a complete GGUF file.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'no GGUF file at {path}')
  try:
    return _CheckedReader(path)
  # The parser stumbles over damaged headers in many ways.
  except (ValueError, IndexError, KeyError, OverflowError) as error:
    size = path.stat().st_size
    raise ValueError(
      f'{path} ({size} bytes) is not a complete GGUF file: {error}'
    ) from error


def field(reader: gguf.GGUFReader, key: str, default=None):
  """Value of a metadata key; ValueError if it is missing without default."""
  if key in reader.fields:
    return reader.fields[key].contents()
  if default is None:
    raise ValueError(f'the GGUF file has no metadata key {key}')
  return default
