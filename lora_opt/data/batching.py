"""Batches for training: tokenised, packed, mixed, resumable.

Examples are tokenised once, before the first batch. This counts the examples
that are too long, and later epochs cost nothing (4 bytes per token are kept).
From there on everything is integers:

  order (new each epoch) -> examples packed into rows -> rows into batches

How an example is laid out in a row depends on the form. A class with the
methods of lora_opt.data.packing.Encoded defines it; the default is the class
for decoders.
"""

import bisect
import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from lora_opt.data.order import Order
from lora_opt.data.packing import Encoded, EncodedExample, Rows
from lora_opt.data.stream import Batches

_TOGETHER = 64  # examples tokenised in one call
POLICIES = ('drop', 'truncate', 'error')


class EncodedSplit(NamedTuple):
  """A tokenised split, with counts of the examples that did not fit.

  Attributes:
    examples: the examples that are used.
    total: number of examples in the split.
    too_long: number of examples that were dropped or truncated.
    policy: what was done to the examples that were too long.
    turns_left_out: number of messages left out of truncated conversations.
    left_out: number of examples that could not be truncated and were dropped.
  """

  examples: Sequence[Encoded]
  total: int
  too_long: int
  policy: str
  turns_left_out: int = 0
  left_out: int = 0

  def __str__(self) -> str:
    if not self.too_long:
      return f'{self.total} examples, none too long'
    done = {'drop': 'dropped', 'truncate': 'truncated'}[self.policy]
    text = f'{self.total} examples, {self.too_long} too long and {done}'
    if self.turns_left_out:
      text += f' (their {self.turns_left_out} oldest messages are left out)'
    if self.left_out:
      text += f', {self.left_out} of them dropped: their last turn is too long'
    return text


def encode_split(
  task,
  tokenizer,
  split: str,
  *,
  length: Any,
  too_long: str = 'drop',
  indices: Sequence[int] | None = None,
  kind: type[Encoded] = EncodedExample,
) -> EncodedSplit:
  """Tokenises the examples of a split.

  Args:
    task: see lora_opt.data.tasks.
    tokenizer: see lora_opt.data.tokenizer.
    split: 'train' or 'eval'.
    length: positions in a row.
    too_long: what to do with an example that needs more positions. 'drop'
      leaves it out. 'truncate' cuts out the middle of the prompt, but never
      the tokens that open and close it (the first token, the headers of a
      chat); it cuts off the end of a completion that is too long by itself. A
      conversation of several turns loses its oldest turns instead, and is
      dropped if its last turn does not fit. 'error' raises an error.
    indices: the examples that make up the split; None takes all.
    kind: the class that lays out examples in rows.

  Returns:
    The examples, and how many of them were too long.

  Raises:
    ValueError: an argument is invalid, no example fits, or an example is too
      long and `too_long` is 'error'.
  """
  capacity = kind.capacity(length)
  if min(capacity) < 1:
    raise ValueError(f'length={length} must be at least 1')
  check_policy(too_long)
  examples = task.examples(split)
  chosen = range(len(examples)) if indices is None else indices
  kept, long, turns, left_out = [], 0, 0, 0
  for index, encoded in zip(
    chosen, _encoded(kind, task, tokenizer, examples, chosen), strict=True
  ):
    sizes = encoded.sizes
    if not _fit(sizes, capacity):
      long += 1
      if too_long == 'drop':
        continue
      if too_long == 'error':
        raise ValueError(
          f'task {task.name!r}: {split} example {index} needs '
          f'{_positions(sizes)} of a row, more than {_positions(capacity)}: '
          "raise length, or 'drop' or 'truncate' long examples"
        )
      try:
        if examples[index].dialogues:
          encoded, dropped = _shortened(
            kind, task, tokenizer, examples[index], capacity
          )
          turns += dropped
          if encoded is None:
            left_out += 1
            continue
        else:
          encoded = encoded.truncated(length)
      except ValueError as error:
        raise ValueError(
          f'task {task.name!r}: {split} example {index}: {error}'
        ) from None
    kept.append(encoded)
  if not kept:
    raise ValueError(
      f'task {task.name!r}: all {long} {split} examples need more than '
      f'{_positions(capacity)} of a row: raise length'
    )
  return EncodedSplit(kept, len(chosen), long, too_long, turns, left_out)


def train_batches(
  task,
  tokenizer,
  *,
  length: Any,
  batch_size: int,
  seed: int,
  rows: Sequence[int] | None = None,
  packing: bool = True,
  too_long: str | None = None,
  workers: int = 0,
  kind: type[Encoded] = EncodedExample,
) -> Batches:
  """Endless batches for training, in an order set by the seed.

  The batches do not depend on how many processes share them: each process
  walks the same stream and keeps `rows` of every batch. So a place in the
  stream means the same to all processes, and stays valid if their number
  changes. Nor do the batches depend on the number of workers.

  Args:
    task: a task (see lora_opt.data.tasks) or a mixture.
    tokenizer: see lora_opt.data.tokenizer.
    length: positions in a row.
    batch_size: rows in a batch, over all processes.
    seed: seed of the order. Every epoch has its own order.
    rows: which rows of each batch to keep, in this order; None keeps all.
    packing: put several examples into a row, each where it fits best; False
      puts one example into each row.
    too_long: 'drop', 'truncate' or 'error', see `encode_split`; None uses the
      setting of each task. The count is logged.
    workers: number of processes that make batches ahead of time; 0 makes each
      batch when it is asked for.
    kind: the class that lays out examples in rows.

  Returns:
    A dataset. Its iterator yields dicts of (rows, length) arrays: tokens,
    targets, positions and segment_ids int32, weights float32 (see the class
    EncodedExample); segment 0 is padding. The iterator's `get_state()` returns
    a JSON-able dict (epoch, row, fingerprint). Its `set_state()` continues
    exactly from there, with any batch_size, and refuses the state of another
    stream. The dataset's `summary` has the counts of each task.

  Raises:
    ValueError: see `encode_split`; or `rows` has a row that no batch has.
  """
  parts = getattr(task, 'tasks', (task,))
  encoded = []
  for part in parts:
    policy = too_long or part.too_long
    split = encode_split(
      part, tokenizer, 'train', length=length, too_long=policy, kind=kind
    )
    log_split(part, 'train', split)
    encoded.append(split)
  counts = tuple(len(split.examples) for split in encoded)
  rates = task.mixing_rates() if hasattr(task, 'tasks') else None
  examples = [example for split in encoded for example in split.examples]
  stream = Rows(examples, Order(counts, rates, seed), length, packing)
  return Batches(
    stream,
    batch_size,
    keep=rows,
    workers=workers,
    summary=[
      _summary(part, split, rate)
      for part, split, rate in zip(parts, encoded, rates or (1.0,), strict=True)
    ],
  )


def eval_batches(
  task,
  tokenizer,
  *,
  length: Any,
  batch_size: int,
  split: str = 'eval',
  packing: bool = True,
  longest: int = 0,
  too_long: str | None = None,
  indices: Sequence[int] | None = None,
  kind: type[Encoded] = EncodedExample,
) -> Batches:
  """Batches for the completion loss: every example once, in order.

  By default no example is left out or truncated, whatever the task does with
  long examples in training. The last batch is filled up with empty rows.

  Args:
    longest: if an example needs it, all rows are made longer, by doubling
      `length` up to this many positions.
    too_long: what to do with examples that are still too long, see
      `encode_split`; None raises an error.
    indices: the examples to use; None takes all.

  For the other arguments and the batches see `train_batches`.

  Raises:
    ValueError: see `encode_split`; or an example is longer than any row.
  """
  lengths = list(_doubled(length, longest))
  encoded = encode_split(
    task,
    tokenizer,
    split,
    length=lengths[-1],
    too_long=too_long or 'error',
    indices=indices,
    kind=kind,
  )
  log_split(task, split, encoded)
  needed = [
    max(sizes)
    for sizes in zip(*(e.sizes for e in encoded.examples), strict=True)
  ]
  length = next(
    (length for length in lengths if _fit(needed, kind.capacity(length))),
    lengths[-1],
  )
  order = Order((len(encoded.examples),))
  stream = Rows(encoded.examples, order, length, packing)
  return Batches(stream, batch_size, epochs=1)


def _shortened(
  kind: type[Encoded], task, tokenizer, example, capacity: Sequence[int]
) -> tuple[Encoded | None, int]:
  """Shortens a conversation to as many of its newest turns as a row holds.

  Returns:
    The encoded conversation, or None if not even the last turn fits; and the
    number of messages left out.
  """
  whole, shorter = example, []  # longest first
  while (example := task.shorter(example)) is not None:
    shorter.append(example)

  def fits(number: int) -> bool:
    (found[number],) = kind.of_all(task, [shorter[number]], tokenizer)
    return _fit(found[number].sizes, capacity)

  found: dict[int, Encoded] = {}
  place = bisect.bisect_left(range(len(shorter)), True, key=fits)
  if place == len(shorter):
    return None, 0
  sizes = [len(one.dialogues[0].messages) for one in (whole, shorter[place])]
  return found[place], sizes[0] - sizes[1]


def _doubled(length: Any, longest: int) -> Iterator[Any]:
  """Yields a row length, then its doubles up to `longest`."""
  single = isinstance(length, int)
  sizes = (length,) if single else tuple(length)
  while True:
    yield sizes[0] if single else sizes
    if not 0 < min(sizes) < longest:
      return
    sizes = tuple(max(size, min(2 * size, longest)) for size in sizes)


def _fit(sizes: Sequence[int], capacity: Sequence[int]) -> bool:
  return all(s <= c for s, c in zip(sizes, capacity, strict=True))


def check_policy(too_long: str) -> None:
  """Raises ValueError if `too_long` is not a known policy."""
  if too_long not in POLICIES:
    raise ValueError(
      f'too_long={too_long!r} must be one of {", ".join(POLICIES)}'
    )


def _encoded(
  kind: type[Encoded], task, tokenizer, examples, indices: Sequence[int]
) -> Iterator[Encoded]:
  """Tokenises in threads, because tokenizers release the GIL."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    # Rows are read and checked in this thread, one after the other.
    made = (
      [examples[index] for index in indices[start : start + _TOGETHER]]
      for start in range(0, len(indices), _TOGETHER)
    )
    futures = pool.map(lambda some: kind.of_all(task, some, tokenizer), made)
    try:
      yield from itertools.chain.from_iterable(futures)
    finally:
      pool.shutdown(cancel_futures=True)  # after an error, drop the rest


def _positions(sizes: Sequence[int]) -> str:
  return ' and '.join(map(str, sizes)) + ' positions'


def _summary(task, split: EncodedSplit, rate: float) -> dict[str, Any]:
  return {
    'task': task.name,
    'rate': rate,
    'examples': split.total,
    'too_long': split.too_long,
    'too_long_policy': split.policy,
    'turns_left_out': split.turns_left_out,
    'left_out': split.left_out,
    'positions': sum(sum(example.sizes) for example in split.examples),
  }


def log_split(task, split: str, encoded: EncodedSplit) -> None:
  """Logs how many examples there are, and how many were too long."""
  level = logging.WARNING if encoded.too_long else logging.INFO
  logging.log(level, 'task %r, %s: %s', task.name, split, encoded)
