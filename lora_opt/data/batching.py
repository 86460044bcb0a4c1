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
  process_index: int = 0,
  process_count: int = 1,
  indices: Sequence[int] | None = None,
) -> EncodedSplit:
  """Tokenises the examples of a split that this process reads.

  Process p of n reads examples p, p + n, p + 2 n, ...: the processes' shares
  are disjoint and make up the whole.

  Args:
    task: see lora_opt.data.tasks.
    tokenizer: see lora_opt.data.tokenizer.
    split: 'train' or 'eval'.
    length: positions in a row.
    too_long: what to do with an example of more than length + 1 ids. 'drop'
      leaves it out; 'truncate' cuts the start of the prompt off, and the end of
      a completion that alone is too long; 'error' refuses it.
    process_index, process_count: which share to take.
    indices: which examples make up the split; None takes all.

  Returns:
    The share, and how many examples of it were too long.

  Raises:
    ValueError: bad arguments, a share without any example that fits, or a long
      one when that is an error.
  """
  _check(length, too_long, process_index, process_count)
  examples = task.examples(split)
  chosen = range(len(examples)) if indices is None else indices
  share = chosen[process_index::process_count]
  if not len(share):
    raise ValueError(
      f'task {task.name!r}: the {split} split has {len(chosen)} examples, '
      f'too few for {process_count} processes'
    )
  kept, long = [], 0
  for index in share:
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
  return EncodedSplit(kept, len(share), long, too_long)


def train_batches(
  task,
  tokenizer,
  *,
  length: int,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  packing: bool = True,
  too_long: str = 'drop',
) -> grain.IterDataset:
  """Batches to train on, without end and in an order set by the seed.

  Args:
    task: see lora_opt.data.tasks.
    tokenizer: see lora_opt.data.tokenizer.
    length: positions in a row.
    batch_size: rows in a batch of this process; the batch over all processes
      has process_count times as many.
    seed: seed of the order. Every epoch has its own order.
    process_index, process_count: which share of the examples to read.
    packing: put several examples into a row, each where it fits best; False
      puts one into each.
    too_long: 'drop', 'truncate' or 'error', see `encode_split`. The count is
      logged.

  Returns:
    A dataset. Its iterator yields dicts of (batch_size, length) arrays:
    tokens, targets, positions and segment_ids int32, weights float32 (see the
    module); segment 0 is padding. `get_state()` of the iterator is a JSON-able
    dict (epoch, row, fingerprint) and `set_state()` goes on exactly from there,
    with any batch_size; it refuses the state of another stream.

  Raises:
    ValueError: see `encode_split`.
  """
  encoded = encode_split(
    task,
    tokenizer,
    'train',
    length=length,
    too_long=too_long,
    process_index=process_index,
    process_count=process_count,
  )
  _log(task, 'train', encoded)
  rows = PackedRows(
    encoded.examples, length=length, packing=packing, seed=seed, epochs=None
  )
  return _batched(rows, batch_size)


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
  rows = PackedRows(
    encoded.examples, length=length, packing=packing, seed=None, epochs=1
  )
  return _batched(rows, batch_size)


def _batched(rows: PackedRows, batch_size: int) -> grain.IterDataset:
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size} must be at least 1')
  # A short last batch gets empty rows: zero weights, segment 0.
  fill = functools.partial(
    grain.experimental.batch_and_pad, batch_size=batch_size
  )
  return rows.batch(batch_size, batch_fn=fill)


def check_policy(too_long: str) -> None:
  """Raises ValueError if `too_long` is no known policy."""
  if too_long not in POLICIES:
    raise ValueError(
      f'too_long={too_long!r} must be one of {", ".join(POLICIES)}'
    )


def _check(
  length: int, too_long: str, process_index: int, process_count: int
) -> None:
  if length < 1:
    raise ValueError(f'length={length} must be at least 1')
  check_policy(too_long)
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index={process_index} must be in 0 ... process_count - 1 = '
      f'{process_count - 1}'
    )


def _log(task, split: str, encoded: EncodedSplit) -> None:
  level = logging.WARNING if encoded.too_long else logging.INFO
  logging.log(level, 'task %r, %s: %s', task.name, split, encoded)
