"""Tensors stored in files, and how to open safetensors files."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from lora_opt.models.pretrained.safetensors_header import Entry, read_header
from lora_opt.reading.values import plain

# Safetensors' names of types. Weights have a type of the first group; the
# others occur in buffers that some files also contain.
FLOATS = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
}
DTYPES = FLOATS | {
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
  'F8_E4M3': jnp.float8_e4m3fn,
  'F8_E5M2': jnp.float8_e5m2,
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in a file, not read yet.

  Attributes:
    file: The file, for messages.
    name: Its name in the file.
    shape: Its shape, as stored.
    dtype: Its type, as stored.
    open: Returns the whole tensor, memory-mapped from the file where the format
      allows it. Pages that were read stay in the process's memory only as long
      as the returned array.
  """

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  open: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

  @property
  def where(self) -> str:
    """File and name, for messages."""
    return f'{self.file}: tensor {plain(self.name)}'

  def check(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless this tensor is a weight of the given shape."""
    if self.shape != tuple(shape):
      raise ValueError(
        f'{self.where} has shape {self.shape}, the config calls for '
        f'{tuple(shape)}'
      )
    if not jnp.issubdtype(self.dtype, jnp.floating) or self.dtype.itemsize < 2:
      raise ValueError(
        f'{self.where} is of type {self.dtype.name}, weights must be float64, '
        'float32, float16 or bfloat16'
      )


def open_safetensors(file: pathlib.Path) -> dict[str, StoredTensor]:
  """Lists the tensors of a safetensors file without reading them.

  Args:
    file: The file.

  Returns:
    The tensors by name.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is damaged, cut short or not a safetensors file.
  """
  return {
    name: _stored(file, name, entry)
    for name, entry in read_header(file).items()
  }


def _stored(file: pathlib.Path, name: str, entry: Entry) -> StoredTensor:
  kind, shape, begin, end = entry
  if kind not in DTYPES:
    raise ValueError(
      f'{file}: tensor {plain(name)} is of type {kind}, known are '
      f'{", ".join(DTYPES)}'
    )
  dtype = np.dtype(DTYPES[kind])

  def read() -> np.ndarray:
    if begin == end:  # an empty mapping is not allowed
      return np.empty(shape, dtype)
    # A view of a plain array: slicing a memmap itself is slow.
    return np.asarray(np.memmap(file, dtype, 'r', begin, shape))

  return StoredTensor(file, name, shape, dtype, read)
