"""The header of a GGUF file; every size is checked before it is used.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np

from lora_opt.reading.values import plain, shown

# NumPy types by the format's numbers for the types of values.
_NUMBERS = {
  0: np.dtype('<u1'),
  1: np.dtype('<i1'),
  2: np.dtype('<u2'),
  3: np.dtype('<i2'),
  4: np.dtype('<u4'),
  5: np.dtype('<i4'),
  6: np.dtype('<f4'),
  7: np.dtype('bool'),
  10: np.dtype('<u8'),
  11: np.dtype('<i8'),
  12: np.dtype('<f8'),
}
_TEXT, _ARRAY = 8, 9
_U32, _U64 = struct.Struct('<I'), struct.Struct('<Q')
_VERSIONS, _ALIGNMENT = (2, 3), 'general.alignment'
_MOST_AXES = 4
# Limits of the header. The largest vocabularies have a quarter of a million
# tokens and twice as many merges.
_MOST_TEXTS, _MOST_KEYS, _MOST_TENSORS = 2**22, 2**16, 2**20
_MOST_BYTES = 2**29


class GGUFTensor(NamedTuple):
  """A tensor of a GGUF file, not read yet.

  Attributes:
    name: Its name.
    kind: How its numbers are stored.
    shape: Its shape, slowest axis first as in NumPy.
    begin: Offset of its first byte in the file.
    end: Offset of the byte after its last one.
  """

  name: str
  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  begin: int
  end: int


class Header:
  """Reads the parts of the header one after another."""

  def __init__(self, data: mmap.mmap):
    self.data, self.size, self.at = data, len(data), 0
    self.most = min(self.size, _MOST_BYTES)

  def take(self, count: int, what: str) -> int:
    """Moves on by `count` bytes and returns where they begin."""
    begin = self.at
    if count > self.most - begin:
      raise ValueError(
        f'cut short: {what} at byte {begin} needs {count} bytes, of a header '
        f'that can have {self.most}; get the file again'
      )
    self.at = begin + count
    return begin

  def u32(self, what: str) -> int:
    return _U32.unpack_from(self.data, self.take(4, what))[0]

  def u64(self, what: str) -> int:
    return _U64.unpack_from(self.data, self.take(8, what))[0]

  def text(self, what: str) -> bytes:
    length = self.u64(what)
    begin = self.take(length, what)
    return self.data[begin : begin + length]

  def name(self, what: str) -> str:
    found = self.text(what)
    try:
      return found.decode()
    except UnicodeDecodeError:
      raise ValueError(f'{what} {shown(found)} is not UTF-8') from None

  def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
    dtype = _NUMBERS[kind]
    begin = self.take(count * dtype.itemsize, what)
    found = np.frombuffer(self.data, np.uint8, self.at - begin, begin).copy()
    if kind == 7 and found.size and found.max() > 1:
      raise ValueError(f'{what} is {found.max()}, neither true nor false')
    return found.view(dtype)

  def value(self, kind: int, what: str) -> Any:
    if kind == _TEXT:
      return self.text(what)
    if kind in _NUMBERS:
      return self.numbers(kind, 1, what)[0].item()
    if kind != _ARRAY:
      raise ValueError(f'{what} is of type {kind}, known are 0 to 12')
    inner, count = self.u32(what), self.u64(what)
    if inner in _NUMBERS:
      return self.numbers(inner, count, what)
    if inner != _TEXT:
      raise ValueError(
        f'{what} is a list of type {inner}, only texts and numbers are read'
      )
    return self.texts(count, what)

  def texts(self, count: int, what: str) -> list[bytes]:
    """A list of texts, such as a vocabulary: the one part with many entries."""
    if count > _MOST_TEXTS or 8 * count > self.size - self.at:
      raise ValueError(f'{what} has {count:,} texts, too many for the file')
    found, data, size, at = [], self.data, self.most, self.at
    for _ in range(count):
      begin = at + 8
      at = begin + _U64.unpack_from(data, at)[0] if begin <= size else size + 1
      if at > size:
        raise ValueError(f'cut short: {size} bytes end within {what}')
      found.append(data[begin:at])
    self.at = at
    return found


def read_header(
  data: mmap.mmap,
) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
  """The metadata by key and the tensors by name.

  Args:
    data: The file. Its first four bytes have been checked already.

  Raises:
    ValueError: If it is damaged or cut short. The message does not name the
      file.
  """
  header = Header(data)
  header.take(4, 'the name of the format')
  version = header.u32('the version')
  if version not in _VERSIONS:
    swapped = version & 0xFFFF == 0
    raise ValueError(
      f'its version is {version}, known are 2 and 3'
      + ('; the file is big-endian, convert it' if swapped else '')
    )
  tensors, keys = header.u64('the counts'), header.u64('the counts')
  # A key has at least 8 + 4 + 1 bytes, a tensor 8 + 4 + 4 + 8.
  if (
    keys > _MOST_KEYS
    or tensors > _MOST_TENSORS
    or 13 * keys + 24 * tensors > header.size
  ):
    raise ValueError(
      f'it calls for {keys:,} keys and {tensors:,} tensors, too many for '
      f'{header.size} bytes'
    )
  fields = {}
  for _ in range(keys):
    key = header.name('a key')
    kind = header.u32('the type of a value')
    value = header.value(kind, f'key {plain(key)}')
    if key in fields:
      raise ValueError(f'the key {plain(key)} occurs twice')
    if key == _ALIGNMENT and (kind != 4 or value.bit_count() != 1):
      raise ValueError(f'{key} is {shown(value)}, not a power of 2 in 32 bits')
    fields[key] = value
  found = [_tensor(header) for _ in range(tensors)]
  return fields, _placed(header, found, fields.get(_ALIGNMENT, 32))


def _tensor(header: Header) -> GGUFTensor:
  """The next tensor; its offsets count from the beginning of the data."""
  name = header.name('the name of a tensor')
  what = f'tensor {plain(name)}'
  axes = header.u32(what)
  if not 1 <= axes <= _MOST_AXES:
    raise ValueError(f'{what} has {axes} axes, expected 1 to {_MOST_AXES}')
  # The file has the fastest axis first.
  shape = tuple(header.u64(what) for _ in range(axes))[::-1]
  number, begin = header.u32(what), header.u64(what)
  try:
    kind = gguf.GGMLQuantizationType(number)
    block, width = gguf.GGML_QUANT_SIZES[kind]
  except (ValueError, KeyError):
    raise ValueError(f'{what} is of type {number}, which is unknown') from None
  if max(shape) > block * header.size:
    raise ValueError(f'{what} has shape {shape}, more than the file can hold')
  if shape[-1] % block:
    raise ValueError(
      f'{what} of type {kind.name} has rows of {shape[-1]}, no multiple of '
      f'{block}'
    )
  end = begin + math.prod(shape) // block * width
  return GGUFTensor(name, kind, shape, begin, end)


def _placed(
  header: Header, found: list[GGUFTensor], alignment: int
) -> dict[str, GGUFTensor]:
  """The tensors by name, with offsets from the start of the file.

  As in llama.cpp, each must begin at the first aligned offset after another.
  """
  start = _aligned(header.at, alignment)
  placed, reached, before = {}, 0, 'the header'
  for tensor in sorted(found, key=lambda tensor: tensor[3:]):
    name = plain(tensor.name)
    if tensor.name in placed:
      raise ValueError(f'tensor {name} occurs twice')
    if start + tensor.end > header.size:
      raise ValueError(
        f'cut short: {header.size} bytes, tensor {name} alone needs '
        f'{start + tensor.end}; get the file again'
      )
    if tensor.begin != reached:
      kind = 'overlaps' if tensor.begin < reached else 'leaves a hole behind'
      raise ValueError(f'tensor {name} {kind} {before}')
    reached, before = _aligned(tensor.end, alignment), name
    placed[tensor.name] = tensor._replace(
      begin=start + tensor.begin, end=start + tensor.end
    )
  if found and start + reached < header.size:
    raise ValueError(
      f'{header.size - start - reached} bytes stand behind its last tensor'
    )
  return {tensor.name: placed[tensor.name] for tensor in found}


def _aligned(place: int, alignment: int) -> int:
  return -(-place // alignment) * alignment
