"""Reading JSON and safetensors files, with clear errors for damaged ones."""

import json
import pathlib
import struct

import jax.numpy as jnp
import numpy as np

# Safetensors' names of the types weights come in.
DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
}


def read_json(file: pathlib.Path) -> dict:
  """Reads a JSON object; clear errors if it is missing or broken."""
  if not file.is_file():
    raise FileNotFoundError(f'no {file.name} in {file.parent}')
  try:
    return json.loads(file.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{file} is not JSON: {error}') from error


def open_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Maps the tensors of a safetensors file without reading them.

  Args:
    file: The file: 8 bytes length of the header, header in JSON, raw data.

  Returns:
    Name: array backed by the file, types as stored.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is cut short or not a safetensors file.
  """
  if not file.is_file():
    raise FileNotFoundError(f'no {file.name} in {file.parent}')
  size = file.stat().st_size
  header, start = _header(file, size)
  tensors = {}
  for name, entry in header.items():
    if name == '__metadata__':
      continue
    begin, end = (start + offset for offset in entry['data_offsets'])
    if end > size:
      raise ValueError(
        f'{file} is cut short: {size} bytes, tensor {name} alone needs {end}; '
        'get the file again'
      )
    if entry['dtype'] not in DTYPES:
      raise ValueError(
        f'{file}: tensor {name} is of type {entry["dtype"]}, supported are '
        f'{", ".join(DTYPES)}'
      )
    shape = tuple(entry['shape'])
    dtype = np.dtype(DTYPES[entry['dtype']])
    if dtype.itemsize * int(np.prod(shape)) != end - begin:
      raise ValueError(
        f'{file}: tensor {name} of shape {shape} has {end - begin} bytes'
      )
    tensors[name] = np.memmap(file, dtype, 'r', offset=begin, shape=shape)
  return tensors


def _header(file, size):
  with open(file, 'rb') as stream:
    prefix = stream.read(8)
    length = struct.unpack('<Q', prefix)[0] if len(prefix) == 8 else size
    if 8 + length > size:
      raise ValueError(
        f'{file} ({size} bytes) is not a complete safetensors file'
      )
    try:
      return json.loads(stream.read(length)), 8 + length
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
      raise ValueError(f'{file} is not a safetensors file: {error}') from error
