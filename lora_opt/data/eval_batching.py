"""Batches for evaluation: choices as branches, prompts for generation.

Both use rows of a few fixed lengths, so that few shapes are compiled. An
example goes into a row of the shortest length that holds it, and every batch
has the same number of rows (the last batch of a length may have empty rows).

Choices share their prompt. For the prompt p1 ... pm and the choices c and d a
row holds

  tokens     p1 ... p(m-1) | pm c1 c2 | pm d1 d2
  targets     0 ...  0     | c1 c2 c3 | d1 d2 d3
  positions   0 ...  m-2   | m-1 ...  | m-1 ...
  branches    0 ...  0     | 1  1  1  | 2  2  2

The last token of the prompt is repeated in each branch: it predicts a choice's
first token, and a position can predict only one token. With the attention rule
of branches (key and query are in the same segment, and the key's branch is 0 or
the query's own), every choice sees only the prompt and its own text.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lora_opt.data import packing
from lora_opt.data.examples import Example

LENGTHS = (256, 512, 1024, 2048)
LONG_LENGTHS = (*LENGTHS, 4096, 8192, 16384, 32768)  # for conversations
PROMPT_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)


class ChoiceBatch(NamedTuple):
  """Rows of choices, with the example and the choice of each position.

  `np.add.at(scores, (batch.example, batch.choice), -losses * weights)` sums the
  log-likelihoods into `scores` (examples, maximum number of choices).
  """

  arrays: dict[str, np.ndarray]  # (rows, length): what the model takes
  example: np.ndarray  # (rows, length) int32: index in the split, 0 if none
  choice: np.ndarray  # (rows, length) int32: index of the choice, 0 if none


class PromptBatch(NamedTuple):
  """Prompts to continue, padded on the left."""

  tokens: np.ndarray  # (rows, length) int32
  positions: np.ndarray  # (rows, length) int32, 0 on padding
  valid: np.ndarray  # (rows, length) bool, False on padding
  example: np.ndarray  # (rows,) int32: index in the split, -1 for empty rows


def pack_choices(
  task,
  tokenizer,
  split: str = 'eval',
  *,
  batch_size: int = 8,
  lengths: Sequence[int] = LENGTHS,
  indices: Sequence[int] | None = None,
) -> Iterator[ChoiceBatch]:
  """Packs every choice of every example of a split into rows, once.

  Args:
    task: a task whose examples have choices.
    tokenizer: see lora_opt.data.tokenizer.
    split: 'train' or 'eval'.
    batch_size: rows in a batch.
    lengths: the row lengths to use, ascending. All examples that fit the first
      are packed into rows of that length, several to a row.
    indices: the examples to use; None takes all.

  Yields:
    Batches of (batch_size, one of lengths). `arrays` holds tokens, targets,
    weights (1 on the positions that predict a choice), positions, segment_ids
    and branches.

  Raises:
    ValueError: an example does not fit into the longest row, or has no
      choices.
  """
  check_lengths(batch_size, lengths)
  examples = task.examples(split)
  buckets = {length: [] for length in lengths}
  for index in range(len(examples)) if indices is None else indices:
    example = examples[index]
    if not example.choices:
      raise ValueError(
        f'task {task.name!r} has no choices: evaluate it by generation'
      )
    segment = _Segment(index, *task.encode_scored(example, tokenizer))
    buckets[bucket(segment.size, lengths, task, split, index)].append(segment)
  for length, segments in buckets.items():
    sizes = [(segment.size,) for segment in segments]
    longest_first = sorted(
      range(len(sizes)), key=sizes.__getitem__, reverse=True
    )
    rows = [
      [segments[i] for i in row]
      for row in packing.best_fit(sizes, longest_first, (length,))
    ]
    for start in range(0, len(rows), batch_size):
      yield _choice_batch(rows[start : start + batch_size], batch_size, length)


def pad_prompts(
  task,
  tokenizer,
  split: str = 'eval',
  *,
  batch_size: int = 8,
  lengths: Sequence[int] = PROMPT_LENGTHS,
  indices: Sequence[int] | None = None,
  encode: Callable[[Example], list[int]] | None = None,
) -> Iterator[PromptBatch]:
  """Prompts of a split for generation, padded on the left.

  Args:
    task: see lora_opt.data.tasks.
    tokenizer: see lora_opt.data.tokenizer.
    split: 'train' or 'eval'.
    batch_size: rows in a batch.
    lengths: the row lengths to use, ascending.
    indices: the examples to use; None takes all.
    encode: returns the ids of an example's prompt; None uses the task's
      `encode_prompt`.

  Yields:
    Batches of (batch_size, one of lengths), short prompts first.

  Raises:
    ValueError: a prompt does not fit into the longest row.
  """
  check_lengths(batch_size, lengths)
  examples = task.examples(split)
  buckets = {length: [] for length in lengths}
  for index in range(len(examples)) if indices is None else indices:
    example = examples[index]
    if encode:
      prompt = encode(example)
    else:
      prompt = task.encode_prompt(example, tokenizer)
    length = bucket(len(prompt), lengths, task, split, index)
    buckets[length].append((index, prompt))
  for length, prompts in buckets.items():
    # Prompts of similar length tend to have answers of similar length, so that
    # the rows of a batch finish at about the same time.
    prompts.sort(key=lambda pair: len(pair[1]))
    for start in range(0, len(prompts), batch_size):
      chunk = prompts[start : start + batch_size]
      yield _prompt_batch(chunk, batch_size, length)


class _Segment(NamedTuple):
  """One example with its choices."""

  index: int
  prompt: Sequence[int]
  choices: Sequence[Sequence[int]]
  scored: Sequence[Sequence[bool]]  # which ids of each choice have weight

  @property
  def size(self) -> int:
    # Each branch repeats the prompt's last token and omits its own last one.
    return len(self.prompt) - 1 + sum(map(len, self.choices))

  def columns(self) -> dict[str, list[int]]:
    """The arrays of this segment, as lists."""
    shared = len(self.prompt) - 1
    columns = {
      'tokens': list(self.prompt[:-1]),
      'targets': [0] * shared,
      'weights': [0] * shared,
      'positions': list(range(shared)),
      'branches': [0] * shared,
      'choice': [0] * shared,
    }
    for number, choice in enumerate(self.choices):
      size = len(choice)
      columns['tokens'] += [self.prompt[-1], *choice[:-1]]
      columns['targets'] += choice
      columns['weights'] += self.scored[number]
      columns['positions'] += range(shared, shared + size)
      columns['branches'] += [number + 1] * size
      columns['choice'] += [number] * size
    return columns


def _choice_batch(
  rows: Sequence[Sequence[_Segment]], batch_size: int, length: int
) -> ChoiceBatch:
  names = ('tokens', 'targets', 'positions', 'segment_ids', 'branches')
  arrays = {name: np.zeros((batch_size, length), np.int32) for name in names}
  arrays['weights'] = np.zeros((batch_size, length), np.float32)
  example = np.zeros((batch_size, length), np.int32)
  choice = np.zeros((batch_size, length), np.int32)
  for row, segments in enumerate(rows):
    start = 0
    for number, segment in enumerate(segments, 1):
      place = row, slice(start, start + segment.size)
      columns = segment.columns()
      choice[place] = columns.pop('choice')
      example[place] = segment.index
      arrays['segment_ids'][place] = number
      for name, column in columns.items():
        arrays[name][place] = column
      start += segment.size
  return ChoiceBatch(arrays, example, choice)


def _prompt_batch(
  prompts: Sequence[tuple[int, Sequence[int]]], batch_size: int, length: int
) -> PromptBatch:
  batch = PromptBatch(
    tokens=np.zeros((batch_size, length), np.int32),
    positions=np.zeros((batch_size, length), np.int32),
    valid=np.zeros((batch_size, length), bool),
    example=np.full(batch_size, -1, np.int32),
  )
  for row, (index, prompt) in enumerate(prompts):
    start = length - len(prompt)
    batch.tokens[row, start:] = prompt
    batch.positions[row, start:] = np.arange(len(prompt))
    batch.valid[row, start:] = True
    batch.example[row] = index
  return batch


def bucket(
  size: int, lengths: Sequence[int], task, split: str, index: int
) -> int:
  """The shortest length that holds an example; ValueError if none does."""
  for length in lengths:
    if size <= length:
      return length
  raise ValueError(
    f'task {task.name!r}: {split} example {index} needs {size} positions, more '
    f'than the longest row of {lengths[-1]}: give longer lengths'
  )


def check_lengths(batch_size: int, lengths: Sequence[int]) -> None:
  """Raises ValueError unless there are rows and their lengths ascend."""
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size} must be at least 1')
  if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
    raise ValueError(f'lengths={lengths!r} must be positive and ascending')
