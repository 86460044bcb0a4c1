"""What the files of Weights & Biases hold of a run that it keeps offline.

They are logs in the format of LevelDB: after a head of 7 bytes, blocks of 32 KB
with parts of records, each of which has a sum (4 bytes), its size (2) and its
kind (1) before it. What a process had not written when it was killed is not
there, and its last record may be cut off.
"""

import importlib
import pathlib
from collections.abc import Iterator
from typing import Any

_HEAD, _PART, _BLOCK = 7, 7, 32768
_WHOLE, _LAST = 1, 4  # kinds of parts; others begin a record or go on with one


def records(path: pathlib.Path) -> Iterator[Any]:
  """The records of a file in order, of `wandb.proto`."""
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
    folder: that has wandb/offline-run-...
    run_id: of the run.
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
  """name -> JSON of the value, of a record of numbers."""
  return {
    item.key or '/'.join(item.nested_key): item.value_json
    for item in record.history.item
  }


def parts(data: bytes) -> Iterator[bytes]:
  """The whole records of a log, as bytes; the last may be cut off."""
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
