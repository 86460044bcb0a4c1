"""Parses the wire format of tf.train.Example, in which TFDS writes records.

Example   1: Features     Features  1: entries (1: key, 2: Feature), repeated
Feature   one of 1: BytesList, 2: FloatList, 3: Int64List, each of which holds
          its values in field 1
"""

import struct
from collections.abc import Iterator

Value = bytes | float | int
_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5


def parse(record: bytes) -> dict[str, tuple[type, list[Value]]]:
  """The values of every key, with their type: bytes, float or int.

  Raises:
    ValueError: the record is not such a message, or has a key twice.

  >>> feature = b'\\x1a\\x05\\n\\x03\\x05\\xac\\x02'
  >>> parse(b'\\n\\x0e\\n\\x0c\\n\\x01s\\x12\\x07' + feature)
  {'s': (<class 'int'>, [5, 300])}
  """
  found = {}
  for features in _sized(record, 1):
    for entry in _sized(features, 1):
      parts = list(_fields(entry))
      if [part[:2] for part in parts] != [(1, _SIZED), (2, _SIZED)]:
        raise ValueError('an entry is not a key and its values')
      key = parts[0][2].decode()
      if key in found:
        raise ValueError(f'the key {key[:80]!r} occurs twice')
      found[key] = _values(parts[1][2])
  return found


def _values(feature: bytes) -> tuple[type, list[Value]]:
  lists = list(_fields(feature))
  if len(lists) != 1 or lists[0][1] != _SIZED or lists[0][0] not in (1, 2, 3):
    raise ValueError('an entry does not hold one list of values')
  number, _, data = lists[0]
  kind = {1: bytes, 2: float, 3: int}[number]
  read = {1: _bytes, 2: _floats, 3: _integers}[number]
  return kind, [
    value
    for field, wire, part in _fields(data)
    for value in read(wire, part)
    if _is_first(field)
  ]


def _is_first(field: int) -> bool:
  if field != 1:
    raise ValueError(f'a list of values has a field {field}')
  return True


def _bytes(wire: int, part: Value) -> list[bytes]:
  if wire != _SIZED:
    raise ValueError('bytes are written as a number')
  return [part]


def _floats(wire: int, part: Value) -> list[float]:
  data = part if wire in (_SIZED, _FOUR) else b'.'
  if len(data) % 4:
    raise ValueError('a list of floats is cut short')
  return list(struct.unpack(f'<{len(data) // 4}f', data))


def _integers(wire: int, part: Value) -> list[int]:
  if wire == _VARINT:
    return [_signed(part)]
  if wire != _SIZED:
    raise ValueError('integers are written as floats')
  values, place = [], 0
  while place < len(part):
    value, place = _varint(part, place)
    values.append(_signed(value))
  return values


def _sized(data: bytes, wanted: int) -> Iterator[bytes]:
  for number, wire, part in _fields(data):
    if (number, wire) != (wanted, _SIZED):
      raise ValueError(f'a field {number} that no tf.train.Example has')
    yield part


def _fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
  """The fields of a message: number, wire type, and bytes or a number."""
  place = 0
  while place < len(data):
    tag, place = _varint(data, place)
    number, wire = tag >> 3, tag & 7
    if wire == _VARINT:
      part, place = _varint(data, place)
      yield number, wire, part
      continue
    if wire == _SIZED:
      size, place = _varint(data, place)
    elif wire in (_EIGHT, _FOUR):
      size = 8 if wire == _EIGHT else 4
    else:
      raise ValueError(f'no message: kind {wire} at byte {place}')
    if size > len(data) - place:
      raise ValueError(f'cut short: {size} bytes are declared at byte {place}')
    yield number, wire, data[place : place + size]
    place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
  value = 0
  for shift in range(0, 70, 7):
    if place == len(data):
      raise ValueError('cut short in a number')
    value |= (data[place] & 0x7F) << shift
    place += 1
    if data[place - 1] < 0x80:
      return value % 2**64, place
  raise ValueError('a number of more than 64 bits')


def _signed(value: int) -> int:
  return value - 2**64 if value >= 2**63 else value
