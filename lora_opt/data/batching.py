"""Batches for training: tokenised, packed, mixed, resumable.

Examples are tokenised once, before the first batch: that counts the ones that
are too long, and later epochs cost nothing (4 bytes a token are kept). From
there on everything is integers:

  order (anew each epoch) -> examples packed into rows -> rows into batches

What an example is in a row differs by form; here it is a class of
lora_opt.data.packing, by default the one of decoders.
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

_TOGETHER = 64  # examples that are tokenised in one call
POLICIES = ('drop', 'truncate', 'error')


class EncodedSplit(NamedTuple):
  """A split, tokenised, with the count of what did not fit.

  Attributes:
    examples: those that are used.
    total: how many there were.
    too_long: how many were dropped or truncated.
    policy: what was done to them.
    turns_left_out: how many messages of truncated conversations were left out.
    left_out: how many could not be truncated, and were dropped after all.
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
    too_long: what to do with an example of more positions. 'drop' leaves it
      out; 'truncate' cuts out the middle of the prompt, but nothing of what
      opens and closes it (the first token, the headers of a chat), and cuts
      off the end of a completion that alone is too long; of a conversation of
      several turns it leaves out the oldest ones, and drops it if the last one
      does not fit; 'error' refuses it.
    indices: which examples make up the split; None takes all.
    kind: what an example is in a row.

  Returns:
    The examples, and how many of them were too long.

  Raises:
    ValueError: bad arguments, no example that fits, or a long one when that is
      an error.
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
  """Batches to train on, without end and in an order set by the seed.

  The batches do not depend on how many processes share them: each process
  walks the same stream and keeps `rows` of every batch, so a place in the
  stream means the same to all of them, and to another number of them. Nor do
  they depend on the number of workers.

  Args:
    task: see lora_opt.data.tasks; or a mixture.
    tokenizer: see lora_opt.data.tokenizer.
    length: positions in a row.
    batch_size: rows in a batch, over all processes.
    seed: seed of the order. Every epoch has its own order.
    rows: which rows of each batch to keep, in this order; None keeps all.
    packing: put several examples into a row, each where it fits best; False
      puts one into each.
    too_long: 'drop', 'truncate' or 'error', see `encode_split`; None for what
      each task says. The count is logged.
    workers: processes that make batches ahead; 0 makes each when asked for.
    kind: what an example is in a row.

  Returns:
    A dataset. Its iterator yields dicts of (rows, length) arrays: tokens,
    targets, positions and segment_ids int32, weights float32 (see the class
    EncodedExample); segment 0 is padding. `get_state()` of the iterator is a
    JSON-able dict (epoch, row, fingerprint) and `set_state()` goes on exactly
    from there, with any batch_size; it refuses the state of another stream.
    `summary` of the dataset counts what it is made of.

  Raises:
    ValueError: see `encode_split`; or a row that no batch has.
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

  Whatever the task does with long examples in training, here none is left out
  or cut. The last batch is filled up with empty rows.

  Args:
    longest: where an example needs it, all rows are made longer, by doubling
      `length` up to so many positions.
    too_long: what to do with examples that are still too long, see
      `encode_split`; None refuses them.
    indices: which examples; None takes all.

  For the other arguments and the batches see `train_batches`.

  Raises:
    ValueError: see `encode_split`; or an example that is longer than any row.
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
  """A conversation with as many of its newest turns as a row holds.

  Returns:
    It, or None if not even the last one fits, and how many messages were left
    out.
  """
  whole, shorter = example, []  # the longest first
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
  """A length of rows and its doubles, as long as they are not too long."""
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
  """Tokenises in threads: tokenizers let go of the interpreter's lock."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    # Rows are read and checked here, one after the other.
    made = (
      [examples[index] for index in indices[start : start + _TOGETHER]]
      for start in range(0, len(indices), _TOGETHER)
    )
    futures = pool.map(lambda some: kind.of_all(task, some, tokenizer), made)
    try:
      yield from itertools.chain.from_iterable(futures)
    finally:
      pool.shutdown(cancel_futures=True)  # after an error nothing is waited for


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
  """Says how many examples there are, and how many were too long."""
  level = logging.WARNING if encoded.too_long else logging.INFO
  logging.log(level, 'task %r, %s: %s', task.name, split, encoded)
