"""Packing: which examples share a row, and the stream of rows.

The number of tokens of every example is known, so that a whole epoch can be
planned with integers: examples in random order, each put into the row that it
fills best, the rows in random order. A place in the stream is then two numbers,
epoch and row: whatever follows can be replayed from them.
"""

import bisect
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

Row = dict[str, np.ndarray]


class EncodedExample(NamedTuple):
  """Token ids of one example: the first `prompt_length` are the prompt's."""

  ids: np.ndarray  # (n,) int32
  prompt_length: int

  @property
  def size(self) -> int:
    """Positions in a row: the last token is only predicted, never read."""
    return len(self.ids) - 1


def best_fit(
  sizes: Sequence[int], order: Sequence[int], length: int
) -> list[list[int]]:
  """Puts items into rows, each where it leaves least room.

  Args:
    sizes: size of each item, none above `length`.
    order: in which order to take the items.
    length: what a row holds.

  Returns:
    The items of each row; rows in the order in which they were begun.

  >>> best_fit([3, 4, 2, 1], [0, 1, 2, 3], 5)
  [[0, 2], [1, 3]]
  """
  rows: list[list[int]] = []
  open_rows: list[tuple[int, int]] = []  # (room left, row), least room first
  for item in order:
    place = bisect.bisect_left(open_rows, (sizes[item], -1))
    if place < len(open_rows):
      room, row = open_rows.pop(place)
    else:
      room, row = length, len(rows)
      rows.append([])
    rows[row].append(item)
    if room > sizes[item]:
      bisect.insort(open_rows, (room - sizes[item], row))
  return rows


class PackedRows(grain.IterDataset):
  """The stream of packed rows: a grain dataset.

  Args:
    examples: tokenised examples, none of more than length + 1 ids.
    length: positions in a row.
    packing: False puts one example into each row.
    seed: seed of the order, new in each epoch; None keeps the given order.
    epochs: how many; None never stops.
  """

  def __init__(
    self,
    examples: Sequence[EncodedExample],
    *,
    length: int,
    packing: bool,
    seed: int | None,
    epochs: int | None,
  ):
    super().__init__()
    self.examples, self.length, self.packing = examples, length, packing
    self.seed, self.epochs = seed, epochs

  def __iter__(self) -> 'PackedRowsIterator':
    return PackedRowsIterator(self)

  def plan(self, epoch: int) -> list[list[int]]:
    """The examples of each row of an epoch."""
    count = len(self.examples)
    rng = (
      None if self.seed is None else np.random.default_rng((self.seed, epoch))
    )
    order = range(count) if rng is None else rng.permutation(count).tolist()
    if not self.packing:
      return [[index] for index in order]
    sizes = [example.size for example in self.examples]
    rows = best_fit(sizes, order, self.length)
    if rng is not None:
      # Rows begun late are emptier: they must not all come last.
      rng.shuffle(rows)
    return rows

  def row(self, indices: Sequence[int]) -> Row:
    """The arrays of one row, (length,) each."""
    examples = [self.examples[index] for index in indices]
    sizes = [example.size for example in examples]
    learned = [
      np.arange(1, len(ids)) >= prompt_length for ids, prompt_length in examples
    ]
    columns = {
      'tokens': [ids[:-1] for ids, _ in examples],
      'targets': [ids[1:] for ids, _ in examples],
      'weights': [weights.astype(np.float32) for weights in learned],
      'positions': [np.arange(size, dtype=np.int32) for size in sizes],
      'segment_ids': [
        np.full(size, number, np.int32) for number, size in enumerate(sizes, 1)
      ],
    }
    padding = (0, self.length - sum(sizes))
    return {
      name: np.pad(np.concatenate(parts), padding)
      for name, parts in columns.items()
    }

  def fingerprint(self) -> int:
    """A number that changes with the examples and with their order."""
    total = zlib.crc32(repr((self.length, self.packing, self.seed)).encode())
    for ids, prompt_length in self.examples:
      total = zlib.crc32(ids.tobytes(), total + prompt_length)
    return total


class PackedRowsIterator(grain.DatasetIterator):
  """One walk through the rows; its state is the place in the stream."""

  def __init__(self, dataset: PackedRows):
    super().__init__()
    self._dataset = dataset
    self._fingerprint = dataset.fingerprint()
    self._epoch, self._row = 0, 0
    self._rows: list[list[int]] | None = None

  def __next__(self) -> Row:
    if self._epoch == self._dataset.epochs:
      raise StopIteration
    if self._rows is None:
      self._rows = self._dataset.plan(self._epoch)
    row = self._dataset.row(self._rows[self._row])
    self._row += 1
    if self._row == len(self._rows):
      self._epoch, self._row, self._rows = self._epoch + 1, 0, None
    return row

  def get_state(self) -> dict[str, int]:
    return {
      'epoch': self._epoch,
      'row': self._row,
      'fingerprint': self._fingerprint,
    }

  def set_state(self, state: dict[str, int]) -> None:
    if state['fingerprint'] != self._fingerprint:
      raise ValueError(
        'the saved place belongs to another stream of training data: the '
        'examples, the tokenizer, the seed, length or packing changed. Resume '
        'with the settings of the saved run, or start a new one'
      )
    self._epoch, self._row, self._rows = state['epoch'], state['row'], None
