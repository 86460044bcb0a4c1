"""Batches for training: tokenised, packed, sharded, resumable.

Examples are tokenised once, before the first batch: that counts the ones that
are too long, and later epochs cost nothing (4 bytes a token are kept). From
there on everything is integers:

  order (anew each epoch) -> examples packed into rows -> rows into batches

An example of n ids is a segment of n - 1 positions: position t reads ids[t] and
predicts ids[t + 1], with weight 1 where that is an id of the completion. So no
target ever crosses from one segment into the next.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import logging

from lora_opt.data.packing import EncodedExample, PackedRows

POLICIES = ('drop', 'truncate', 'error')


class EncodedSplit(NamedTuple):
  """A split, tokenised, with the count of what did not fit.

  Attributes:
    examples: those that are used.
    total: how many there were.
    too_long: how many were dropped or truncated.
    policy: what was done to them.
  """

  examples: Sequence[EncodedExample]
  total: int
  too_long: int
  policy: str

  def __str__(self) -> str:
    if not self.too_long:
      return f'{self.total} examples, none too long'
    done = {'drop': 'dropped', 'truncate': 'truncated'}[self.policy]
    return f'{self.total} examples, {self.too_long} too long and {done}'


def encode_split(
  task,
  tokenizer,
  split: str,
  *,
  length: int,
  too_long: str = 'drop',
  indices: Sequence[int] | None = None,
) -> EncodedSplit:
  """Tokenises the examples of a split.

  Args:
    task: see lora_opt.data.tasks.
    tokenizer: see lora_opt.data.tokenizer.
    split: 'train' or 'eval'.
    length: positions in a row.
    too_long: what to do with an example of more than length + 1 ids. 'drop'
      leaves it out; 'truncate' cuts the start of the prompt off, and the end of
      a completion that alone is too long; 'error' refuses it.
    indices: which examples make up the split; None takes all.

  Returns:
    The examples, and how many of them were too long.

  Raises:
    ValueError: bad arguments, no example that fits, or a long one when that is
      an error.
  """
  if length < 1:
    raise ValueError(f'length={length} must be at least 1')
  check_policy(too_long)
  examples = task.examples(split)
  chosen = range(len(examples)) if indices is None else indices
  kept, long = [], 0
  for index in chosen:
    prompt, completion = task.encode(examples[index], tokenizer)
    size = len(prompt) + len(completion)
    if size > length + 1:
      long += 1
      if too_long == 'drop':
        continue
      if too_long == 'error':
        raise ValueError(
          f'task {task.name!r}: {split} example {index} has {size} tokens, '
          f"more than length + 1 = {length + 1}: raise length, or 'drop' or "
          "'truncate' long examples"
        )
      completion = completion[:length]
      prompt = prompt[len(prompt) + len(completion) - length - 1 :]
    ids = np.array(prompt + completion, np.int32)
    kept.append(EncodedExample(ids, len(prompt)))
  if not kept:
    raise ValueError(
      f'task {task.name!r}: all {long} {split} examples have more than '
      f'length + 1 = {length + 1} tokens: raise length'
    )
  return EncodedSplit(kept, len(chosen), long, too_long)


def train_batches(
  task,
  tokenizer,
  *,
  length: int,
  batch_size: int,
  seed: int,
  rows: Sequence[int] | None = None,
  packing: bool = True,
  too_long: str = 'drop',
) -> grain.IterDataset:
  """Batches to train on, without end and in an order set by the seed.

  The batches do not depend on how many processes share them: each process
  walks the same stream and keeps `rows` of every batch, so a place in the
  stream means the same to all of them, and to another number of them.

  Args:
    task: see lora_opt.data.tasks.
    tokenizer: see lora_opt.data.tokenizer.
    length: positions in a row.
    batch_size: rows in a batch, over all processes.
    seed: seed of the order. Every epoch has its own order.
    rows: which rows of each batch to keep, in this order; None keeps all.
    packing: put several examples into a row, each where it fits best; False
      puts one into each.
    too_long: 'drop', 'truncate' or 'error', see `encode_split`. The count is
      logged.

  Returns:
    A dataset. Its iterator yields dicts of (rows, length) arrays: tokens,
    targets, positions and segment_ids int32, weights float32 (see the module);
    segment 0 is padding. `get_state()` of the iterator is a JSON-able
    dict (epoch, row, fingerprint) and `set_state()` goes on exactly from there,
    with any batch_size; it refuses the state of another stream.

  Raises:
    ValueError: see `encode_split`; or a row that no batch has.
  """
  if rows is not None and not all(0 <= row < batch_size for row in rows):
    raise ValueError(f'rows={rows} must be in 0 ... {batch_size - 1}')
  encoded = encode_split(
    task, tokenizer, 'train', length=length, too_long=too_long
  )
  _log(task, 'train', encoded)
  stream = PackedRows(
    encoded.examples, length=length, packing=packing, seed=seed, epochs=None
  )
  return _batched(stream, batch_size, rows)


def eval_batches(
  task,
  tokenizer,
  *,
  length: int,
  batch_size: int,
  split: str = 'eval',
  packing: bool = True,
  too_long: str = 'drop',
  indices: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Batches for the completion loss: every example once, in order.

  The last batch is filled up with empty rows. `indices` says which examples,
  None takes all; for the other arguments and the batches see `train_batches`.
  """
  encoded = encode_split(
    task,
    tokenizer,
    split,
    length=length,
    too_long=too_long,
    indices=indices,
  )
  _log(task, split, encoded)
  stream = PackedRows(
    encoded.examples, length=length, packing=packing, seed=None, epochs=1
  )
  return _batched(stream, batch_size)


def _batched(
  stream: PackedRows, batch_size: int, rows: Sequence[int] | None = None
) -> grain.IterDataset:
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size} must be at least 1')
  if rows is not None:
    return stream.batch(
      batch_size,
      batch_fn=lambda batch: grain.experimental.batch_and_pad(
        [batch[row] for row in rows], batch_size=len(rows)
      ),
    )
  # A short last batch gets empty rows: zero weights, segment 0.
  fill = functools.partial(
    grain.experimental.batch_and_pad, batch_size=batch_size
  )
  return stream.batch(batch_size, batch_fn=fill)


def check_policy(too_long: str) -> None:
  """Raises ValueError if `too_long` is no known policy."""
  if too_long not in POLICIES:
    raise ValueError(
      f'too_long={too_long!r} must be one of {", ".join(POLICIES)}'
    )


def _log(task, split: str, encoded: EncodedSplit) -> None:
  level = logging.WARNING if encoded.too_long else logging.INFO
  logging.log(level, 'task %r, %s: %s', task.name, split, encoded)
