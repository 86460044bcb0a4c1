"""Reads records of array_record files, in a separate process.

A damaged file can make the reader crash or fill the memory; see
`lora_opt.reading.confined`. This imports nothing of `lora_opt`.
"""

import functools
import os
import struct
from typing import Any

from array_record.python import array_record_module

_STEP = 16  # records read at once: each may be large
_REPLY = 2**24  # bytes after which a reply ends


def work(what: str, path: str, *arguments: Any) -> Any:
  """The entry point of the process: calls `count` or `records`."""
  return {'count': count, 'records': records}[what](path, *arguments)


def count(path: str) -> int:
  """The number of records in a file."""
  return _reader(path).num_records()


def records(path: str, start: int, wanted: int, longest: int) -> bytes:
  """Reads records from `start` on, at least one.

  Returns:
    For each record its size, the number of its bytes that follow (none if it is
    longer than `longest`), and these bytes.
  """
  reader, reply = _reader(path), bytearray()
  stop = min(start + wanted, reader.num_records())
  for first in range(start, stop, _STEP):
    for record in reader.read(first, min(first + _STEP, stop)):
      given = record if len(record) <= longest else b''
      reply += struct.pack('<QQ', len(record), len(given)) + given
    if len(reply) > _REPLY:
      break
  if not reply:
    raise ValueError(f'there is no record {start}')
  return bytes(reply)


def _reader(path: str) -> array_record_module.ArrayRecordReader:
  facts = os.stat(path)
  return _opened(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _opened(
  path: str, state: tuple[int, ...]
) -> array_record_module.ArrayRecordReader:
  del state  # part of the key, so that a changed file is opened anew
  # No read-ahead, since records are requested a few at a time.
  return array_record_module.ArrayRecordReader(
    path, 'readahead_buffer_size:0,max_parallelism:0'
  )
