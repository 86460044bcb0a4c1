"""Reading safetensors files, with clear errors for damaged ones."""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

# Safetensors' names of types. Weights are of the first group; the others
# occur in buffers that some files carry along.
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
    file: Where it is, for messages.
    name: What it is called there.
    shape: Its sizes, as stored.
    dtype: Its type, as stored.
    open: Returns the whole tensor, backed by the file and not by memory of
      its own as far as the format allows. Pages of the file that were looked
      at stay with the process only as long as that array.
  """

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  open: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

  def check(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless these are weights of the given shape."""
    if self.shape != tuple(shape):
      raise ValueError(
        f'{self.file}: tensor {self.name} has shape {self.shape}, the config '
        f'calls for {tuple(shape)}'
      )
    if not jnp.issubdtype(self.dtype, jnp.floating) or self.dtype.itemsize < 2:
      raise ValueError(
        f'{self.file}: tensor {self.name} is of type {self.dtype.name}, '
        'weights must be float64, float32, float16 or bfloat16'
      )


def open_safetensors(file: pathlib.Path) -> dict[str, StoredTensor]:
  """Lists the tensors of a safetensors file without reading them.

  Args:
    file: The file: 8 bytes length of the header, header in JSON, raw data.

  Returns:
    Name: tensor.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is cut short or not a safetensors file.
  """
  if not file.is_file():
    raise FileNotFoundError(f'no {file.name} in {file.parent}')
  size = file.stat().st_size
  header, start = _header(file, size)
  return {
    name: _stored(file, name, entry, start, size)
    for name, entry in header.items()
    if name != '__metadata__'
  }


def _header(file, size):
  with open(file, 'rb') as stream:
    prefix = stream.read(8)
    length = struct.unpack('<Q', prefix)[0] if len(prefix) == 8 else size
    if 8 + length > size:
      raise ValueError(
        f'{file} ({size} bytes) is not a complete safetensors file'
      )
    try:
      header = json.loads(stream.read(length))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
      raise ValueError(f'{file} is not a safetensors file: {error}') from error
  if not isinstance(header, dict):
    raise ValueError(
      f'{file} is not a safetensors file: no table in its header'
    )
  return header, 8 + length


def _stored(file, name, entry, start, size) -> StoredTensor:
  try:
    begin, end = (start + int(offset) for offset in entry['data_offsets'])
    shape = tuple(int(length) for length in entry['shape'])
    kind = entry['dtype']
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{file}: the header describes tensor {name} by {entry!r}, expected '
      'dtype, shape and data_offsets'
    ) from error
  if end > size:
    raise ValueError(
      f'{file} is cut short: {size} bytes, tensor {name} alone needs {end}; '
      'get the file again'
    )
  if kind not in DTYPES:
    raise ValueError(
      f'{file}: tensor {name} is of type {kind}, known are {", ".join(DTYPES)}'
    )
  dtype = np.dtype(DTYPES[kind])
  if begin < start or dtype.itemsize * math.prod(shape) != end - begin:
    raise ValueError(
      f'{file}: tensor {name} of type {kind} and shape {shape} has '
      f'{end - begin} bytes, expected {dtype.itemsize * math.prod(shape)}'
    )

  def read() -> np.ndarray:
    if begin == end:  # an empty mapping is not allowed
      return np.empty(shape, dtype)
    # A view of a plain array: slicing a memmap itself is slow.
    return np.asarray(np.memmap(file, dtype, 'r', begin, shape))

  return StoredTensor(file, name, shape, dtype, read)
