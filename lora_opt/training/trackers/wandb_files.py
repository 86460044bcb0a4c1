"""Reads the files that Weights & Biases writes for an offline run.

They are logs in LevelDB's format: a header of 7 bytes, then blocks of 32 KB
with parts of records. Each part is preceded by its checksum (4 bytes), size (2)
and kind (1). Records that a process had not written when it was killed are
missing, and the last one may be cut off.
"""

import importlib
import pathlib
from collections.abc import Iterator
from typing import Any

_HEAD, _PART, _BLOCK = 7, 7, 32768
_WHOLE, _LAST = 1, 4  # kinds of parts; others begin or continue a record


def records(path: pathlib.Path) -> Iterator[Any]:
  """Yields the records of a file in order, as `Record` of `wandb.proto`."""
  proto = importlib.import_module('wandb.proto.wandb_internal_pb2')
  broken = importlib.import_module('google.protobuf.message').DecodeError
  for data in parts(path.read_bytes()):
    try:
      yield proto.Record.FromString(data)
    except broken:
      return


def last_steps(folder: pathlib.Path, run_id: str) -> dict[str, int] | None:
  """The last step of each split of a run; None if it has no files.

  Args:
    folder: the folder that has wandb/offline-run-...
    run_id: the id of the run.
  """
  files = f'wandb/offline-run-*-{run_id}/run-{run_id}.wandb'
  paths = list(folder.glob(files))
  if not paths:
    return None
  found: dict[str, int] = {}
  for path in paths:
    for record in records(path):
      if not record.HasField('history'):
        continue
      row = row_of(record)
      for split in {name.partition('/')[0] for name in row if '/' in name}:
        found[split] = max(found.get(split, -1), int(row['_step']))
  return found


def row_of(record: Any) -> dict[str, str]:
  """The numbers in a history record: name -> value as JSON."""
  return {
    item.key or '/'.join(item.nested_key): item.value_json
    for item in record.history.item
  }


def parts(data: bytes) -> Iterator[bytes]:
  """Yields the complete records of a log as bytes; the last may be cut off."""
  place, whole = _HEAD, b''
  while place + _PART <= len(data):
    room = _BLOCK - place % _BLOCK
    if room < _PART:
      place += room
      continue
    size = int.from_bytes(data[place + 4 : place + 6], 'little')
    kind = data[place + 6]
    place += _PART + size
    if place > len(data):
      return
    whole += data[place - size : place]
    if kind in (_WHOLE, _LAST):
      yield whole
      whole = b''
