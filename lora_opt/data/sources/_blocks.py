"""Rows that are read a block at a time, by another process if need be."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

WANTED = 256  # rows of a block
# Limits of the process that reads. A page of a file may well take 100 MB.
SECONDS = 60.0
MEMORY = 3 * 2**29
_KEPT = 4


class Blocks(Sequence):
  """Rows by index; only the last few blocks are kept, others are read again.

  Args:
    count: number of rows.
    read: returns rows from an index on, at least one.
  """

  def __init__(self, count: int, read: Callable[[int], Sequence[Any]]):
    self._count, self._read = count, read
    self._kept = collections.deque(maxlen=_KEPT)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Any:
    for start, rows in tuple(self._kept):  # another thread may add to it
      if start <= index < start + len(rows):
        return rows[index - start]
    rows = self._read(index)
    self._kept.appendleft((index, rows))
    return rows[0]


def cut(problem: Exception, length: int = 300) -> str:
  """The error message of another library, shortened and on one line."""
  text = ' '.join(str(problem).split())
  text = ''.join(c if c.isprintable() else '?' for c in text)
  return text if len(text) <= length else text[:length] + '...'
