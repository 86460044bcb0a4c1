"""A stream of batches of packed rows, which can be resumed at any place.

A place is two integers, epoch and row. There may be any number n of workers
(grain processes); each makes every n-th batch. A batch is passed on with the
place that follows it, so the saved state depends neither on the number of
workers nor on how far ahead they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from lora_opt.data.packing import Row, Rows


class Place(NamedTuple):
  """Where the next batch begins."""

  epoch: int
  row: int


class Batches(grain.IterDataset):
  """A grain dataset of batches; see `lora_opt.data.batching.train_batches`.

  Args:
    rows: the rows to make batches of.
    batch_size: rows in a batch.
    epochs: number of epochs; the last batch is filled up with empty rows. None
      never stops.
    keep: which rows of each batch to keep, in this order; None keeps all.
    workers: number of processes that make batches ahead of time; 0 makes each
      batch when it is requested.
    summary: description of the examples, for the record of a run.
  """

  def __init__(
    self,
    rows: Rows,
    batch_size: int,
    *,
    epochs: int | None = None,
    keep: Sequence[int] | None = None,
    workers: int = 0,
    summary: Sequence[Mapping[str, Any]] = (),
  ):
    super().__init__()
    if batch_size < 1:
      raise ValueError(f'batch_size={batch_size} must be at least 1')
    if workers < 0:
      raise ValueError(f'workers={workers} must be 0 or more')
    if keep is not None and not all(0 <= row < batch_size for row in keep):
      raise ValueError(f'rows={keep} must be in 0 ... {batch_size - 1}')
    self.rows, self.batch_size, self.epochs = rows, batch_size, epochs
    self.keep = list(range(batch_size) if keep is None else keep)
    self.workers, self.summary = workers, list(summary)

  def __iter__(self) -> 'BatchIterator':
    return BatchIterator(self)

  def batch(self, rows: Sequence[Sequence[int]]) -> Row:
    """The arrays of a batch, given the examples of each of its rows."""
    filled = [rows[row] if row < len(rows) else () for row in self.keep]
    arrays = [self.rows.row(indices) for indices in filled]
    return {name: np.stack([a[name] for a in arrays]) for name in arrays[0]}


class BatchIterator(grain.DatasetIterator):
  """Iterates over the batches; its state is the place in the stream."""

  def __init__(self, dataset: Batches):
    super().__init__()
    self._dataset = dataset
    self._fingerprint = dataset.rows.fingerprint()
    self._place = Place(0, 0)
    self._ahead: Iterator[tuple[Place, Row]] | None = None

  def __next__(self) -> Row:
    if self._ahead is None:
      if self._dataset.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags
      source = _FromPlace(self._dataset, self._place)
      self._ahead = iter(
        source.mp_prefetch(grain.MultiprocessingOptions(self._dataset.workers))
      )
    place, batch = next(self._ahead)
    self._place = Place(*place)
    return batch

  def get_state(self) -> dict[str, int]:
    return {**self._place._asdict(), 'fingerprint': self._fingerprint}

  def set_state(self, state: dict[str, int]) -> None:
    if state['fingerprint'] != self._fingerprint:
      raise ValueError(
        'the saved place belongs to another stream of training data: the '
        'examples, the tokenizer, the seed, length, packing or rates changed. '
        'Resume with the settings of the saved run, or start a new one'
      )
    self.close()
    self._place = Place(state['epoch'], state['row'])

  def close(self) -> None:
    """Ends the workers, if there are any."""
    if self._ahead is not None:
      self._ahead.close()
      self._ahead = None


class _FromPlace(grain.IterDataset):
  """Batches, each with the place after it; every worker makes its share."""

  def __init__(self, dataset: Batches, place: Place):
    super().__init__()
    self.dataset, self.place = dataset, place
    self.share = slice(0, None, 1)

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    """Called by grain in a worker, to say which of the batches it makes."""
    del sequential_slice
    self.share = sl

  def __iter__(self) -> '_FromPlaceIterator':
    return _FromPlaceIterator(self)


class _FromPlaceIterator(grain.DatasetIterator):
  def __init__(self, source: _FromPlace):
    super().__init__()
    self._source = source
    self._batches = self._walk()
    self._done = 0

  def __next__(self) -> tuple[tuple[int, int], Row]:
    self._done += 1
    return next(self._batches)

  def get_state(self) -> dict[str, int]:
    return {'done': self._done}

  def set_state(self, state: dict[str, int]) -> None:
    self._batches, self._done = self._walk(), 0
    while self._done < state['done']:
      next(self)

  def _walk(self) -> Iterator[tuple[tuple[int, int], Row]]:
    """Plans every batch, but makes only those of this worker's share."""
    dataset, share = self._source.dataset, self._source.share
    epoch, row = self._source.place
    number, plan, waiting = 0, None, []
    while epoch != dataset.epochs:
      plan = plan or dataset.rows.plan(epoch)
      taken = plan[row : row + dataset.batch_size - len(waiting)]
      waiting, row = waiting + taken, row + len(taken)
      if row == len(plan):
        epoch, row, plan = epoch + 1, 0, None
      if len(waiting) == dataset.batch_size or epoch == dataset.epochs:
        if number % share.step == share.start:
          yield (epoch, row), dataset.batch(waiting)
        number, waiting = number + 1, []
