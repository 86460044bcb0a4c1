"""Reads the header of a safetensors file, with its own library's checks."""

import pathlib
from typing import NamedTuple

from lora_opt.reading import values
from lora_opt.reading.files import check_file
from lora_opt.reading.json_text import parse_json

# Bits per value of each type in the format.
BITS = {
  **dict.fromkeys(('BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0'), 8),
  **dict.fromkeys(('F8_E4M3FNUZ', 'F8_E5M2FNUZ'), 8),
  **dict.fromkeys(('U16', 'I16', 'F16', 'BF16'), 16),
  **dict.fromkeys(('U32', 'I32', 'F32'), 32),
  **dict.fromkeys(('U64', 'I64', 'F64', 'C64'), 64),
  **{'F4': 4, 'F6_E2M3': 6, 'F6_E3M2': 6},
}
# The library's limit for the header, and NumPy's for the axes of an array.
MOST_BYTES = 100_000_000
MOST_AXES = 64
_KEYS = {'dtype', 'shape', 'data_offsets'}


class Entry(NamedTuple):
  """What the header says about one tensor."""

  dtype: str
  shape: tuple[int, ...]
  begin: int  # first byte in the file
  end: int


def read_header(file: pathlib.Path) -> dict[str, Entry]:
  """Reads which tensors a file has, and where.

  Everything that the library `safetensors` refuses is refused: tensors that
  overlap or leave a gap, bytes after the last one, sizes that do not fit.

  Args:
    file: The file: the length of the header in 8 bytes, the header in JSON, and
      the data.

  Returns:
    The entries by name, in the order of the header.

  Raises:
    FileNotFoundError: There is no such file.
    OSError: It cannot be read.
    ValueError: It is damaged or cut short, or not a safetensors file.
  """
  header, start, size = _parsed(file)
  _check_metadata(file, header.pop('__metadata__', None))
  entries = {
    name: _entry(file, name, found, start) for name, found in header.items()
  }
  _check_places(file, entries, start, size)
  return entries


def read_metadata(file: pathlib.Path) -> dict[str, str]:
  """Reads the metadata in the header; raises the errors of `read_header`."""
  header, _, _ = _parsed(file)
  metadata = header.get('__metadata__')
  _check_metadata(file, metadata)
  return metadata or {}


def _parsed(file: pathlib.Path) -> tuple[dict, int, int]:
  """Returns the header, the offset of the data and the file's size in bytes."""
  size = check_file(file)
  with file.open('rb') as stream:
    prefix = stream.read(8)
    length = int.from_bytes(prefix, 'little')
    if len(prefix) == 8 and length > MOST_BYTES:
      raise ValueError(
        f'{file} is not a safetensors file: it calls for a header of '
        f'{length:,} bytes, at most {MOST_BYTES:,} are allowed'
      )
    if len(prefix) < 8 or 8 + length > size:
      raise ValueError(
        f'{file} ({size} bytes) is not a complete safetensors file'
      )
    data = stream.read(length)
  if not data.startswith(b'{'):
    raise ValueError(
      f'{file} is not a safetensors file: no table in its header'
    )
  header = parse_json(data, f'{file}: header', most=MOST_BYTES)
  return header, 8 + length, size


def _check_metadata(file, metadata):
  if metadata is None:
    return
  what = f'{file}: __metadata__'
  for key, value in values.table(metadata, what).items():
    values.text(value, f'{what}: {values.shown(key)}')


def _entry(file: pathlib.Path, name: str, found: object, start: int) -> Entry:
  what = f'{file}: tensor {values.plain(name)}'
  if values.table(found, what).keys() != _KEYS:
    raise ValueError(
      f'{what} is described by {values.shown(found)}, expected dtype, shape '
      'and data_offsets'
    )
  kind = values.one_of(found['dtype'], f'{what}: dtype', BITS)
  shape = values.items(found['shape'], f'{what}: shape')
  offsets = values.items(found['data_offsets'], f'{what}: data_offsets', 2)
  if len(shape) > MOST_AXES:
    raise ValueError(
      f'{what} has {len(shape)} axes, at most {MOST_AXES} are possible'
    )
  count = nonzero = 1
  for length in shape:
    count *= values.integer(length, f'{what}: shape', 0, 2**63 - 1)
    nonzero *= max(length, 1)
    if nonzero * 8 >= 2**63:
      raise ValueError(
        f'{what}: shape {values.shown(shape)} is more than any file can hold'
      )
  begin, end = (
    values.integer(offset, f'{what}: data_offsets', 0, 2**63 - 1)
    for offset in offsets
  )
  if 8 * (end - begin) != count * BITS[kind]:
    raise ValueError(
      f'{what} of type {kind} and shape {values.shown(tuple(shape))} has '
      f'{end - begin} bytes by its data_offsets {offsets}, expected '
      f'{count * BITS[kind] / 8:g}'
    )
  return Entry(kind, tuple(shape), start + begin, start + end)


def _check_places(
  file: pathlib.Path, entries: dict[str, Entry], start: int, size: int
) -> None:
  """Raises ValueError unless the tensors fill the rest of the file exactly."""
  reached, before = start, None
  ordered = sorted(entries.items(), key=lambda item: item[1][2:])
  for name, (_, _, begin, end) in ordered:
    if end > size:
      raise ValueError(
        f'{file} is cut short: {size} bytes, tensor {values.plain(name)} alone '
        f'needs {end}; get the file again'
      )
    if begin != reached:
      kind = 'overlaps' if begin < reached else 'leaves a hole behind'
      raise ValueError(
        f'{file}: tensor {values.plain(name)} {kind} '
        f'{"the header" if before is None else values.plain(before)}: it '
        f'begins at byte {begin}, expected {reached}; get the file again'
      )
    reached, before = end, name
  if reached != size:
    raise ValueError(
      f'{file} has {size - reached} bytes behind its last tensor; get the file '
      'again'
    )
