"""Batches for encoder-decoders: the form 'encoder_decoder'.

The encoder reads the prompt, the decoder learns the completion. As in T5, both
end with the end-of-text token, and the decoder reads its targets shifted by one
position, starting with the padding token:

  encoder_tokens  p1 ... pm </s>
  tokens          <pad> c1 ... cn
  targets         c1 ... cn </s>

Several pairs share a row. Pair k has the segment id k on both sides. Several
completions of one prompt are branches of its segment, so the encoder runs once
for all of them.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

from lora_opt.data import eval_batching, packing
from lora_opt.data.eval_batching import ChoiceBatch, PromptBatch

TARGET_LENGTHS = (64, 256, 1024, 2048)

# Positions in a row for the encoder and for the decoder; one number stands for
# both.
Length = int | tuple[int, int]


class EncodedPair(NamedTuple):
  """Ids of a prompt and of a completion, each ending with the end token."""

  inputs: np.ndarray  # (m,) int32
  targets: np.ndarray  # (n,) int32
  start_id: int  # what the decoder reads first

  @classmethod
  def of_all(cls, task, examples, tokenizer) -> list[Self]:
    return [cls.of(task, example, tokenizer) for example in examples]

  @classmethod
  def of(cls, task, example, tokenizer) -> Self:
    inputs, (targets,) = encode(task, tokenizer, example, [example.completion])
    return cls(
      np.array(inputs, np.int32),
      np.array(targets, np.int32),
      start_id(tokenizer),
    )

  @classmethod
  def capacity(cls, length: Length) -> packing.Sizes:
    return (length, length) if isinstance(length, int) else tuple(length)

  @classmethod
  def row(cls, examples: Sequence[Self], length: Length) -> packing.Row:
    """The arrays of a row that these examples share.

    encoder_tokens and encoder_segment_ids have the length of the inputs;
    tokens, targets, weights and segment_ids have that of the targets.
    """
    row = _empty_row(*cls.capacity(length))
    read = written = 0
    for number, pair in enumerate(examples, 1):
      read = _put_inputs(row, pair.inputs, number, read)
      written = _put_targets(row, pair.targets, pair.start_id, number, written)
    return row

  @property
  def sizes(self) -> packing.Sizes:
    return len(self.inputs), len(self.targets)

  def truncated(self, length: Length) -> Self:
    """Cuts out the middle of a long prompt and the end of a long completion."""
    inputs, targets = self.capacity(length)
    return self._replace(
      inputs=packing.without_middle(self.inputs, inputs, (0, 1)),
      targets=self.targets[:targets],
    )

  def checksum(self, start: int) -> int:
    total = zlib.crc32(self.inputs.tobytes(), start + len(self.inputs))
    return zlib.crc32(self.targets.tobytes(), total)


def encode(
  task, tokenizer, example, completions: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
  """Token ids of a prompt and of its completions, all with the end token.

  Args:
    task: see lora_opt.data.tasks.
    tokenizer: see lora_opt.data.tokenizer.
    example: its prompt is what the encoder reads.
    completions: texts for the decoder.

  Raises:
    ValueError: the task is a chat, or the tokenizer has no end token.
  """
  if task.chat:
    raise ValueError(
      f'task {task.name!r}: an encoder-decoder has no chat turns: set '
      'chat=False on the task'
    )
  if tokenizer.eos_id is None:
    raise ValueError(
      'the tokenizer has no end-of-text token (eos_id), so that no answer '
      'could end'
    )
  prompt, *rest = (
    [*tokenizer.encode(text), tokenizer.eos_id]
    for text in (example.prompt, *completions)
  )
  return prompt, rest


def start_id(tokenizer) -> int:
  """The token that decoders read first: the padding token.

  Raises:
    ValueError: the tokenizer has no padding token.
  """
  if tokenizer.pad_id is None:
    raise ValueError(
      'the tokenizer has no padding token (pad_id), which the decoder of an '
      'encoder-decoder reads first'
    )
  return tokenizer.pad_id


def pack_choices(
  task,
  tokenizer,
  split: str = 'eval',
  *,
  batch_size: int = 8,
  lengths: Sequence[int] = eval_batching.LENGTHS,
  target_lengths: Sequence[int] = TARGET_LENGTHS,
  indices: Sequence[int] | None = None,
) -> Iterator[ChoiceBatch]:
  """Packs every choice of every example of a split into rows, once each.

  Args:
    task: a task whose examples have choices.
    tokenizer: see lora_opt.data.tokenizer.
    split: 'train' or 'eval'.
    batch_size: rows in a batch.
    lengths: the row lengths to use for the inputs, ascending.
    target_lengths: the row lengths to use for the targets, ascending. All
      choices of an example go into the same row.
    indices: indices of the examples to use; None uses all.

  Yields:
    Batches like those of `lora_opt.data.eval_batching.pack_choices`, with the
    arrays of `EncodedPair.row` and branches.

  Raises:
    ValueError: an example does not fit into the longest row, or has no choices.
  """
  eval_batching.check_lengths(batch_size, lengths)
  eval_batching.check_lengths(batch_size, target_lengths)

  def encode_choices(example):
    return encode(task, tokenizer, example, example.choices)

  examples = task.examples(split)
  buckets: dict[tuple[int, int], list[_Question]] = {}
  for index in range(len(examples)) if indices is None else indices:
    example = examples[index]
    if not example.choices:
      raise ValueError(
        f'task {task.name!r} has no choices: evaluate it by generation'
      )
    unscored = task.unscored(example, encode_choices)
    question = _Question(index, *encode_choices(example), unscored)
    place = task, split, index
    bucket = (
      eval_batching.bucket(question.sizes[0], lengths, *place),
      eval_batching.bucket(question.sizes[1], target_lengths, *place),
    )
    buckets.setdefault(bucket, []).append(question)
  first = start_id(tokenizer)
  for length, questions in sorted(buckets.items()):
    sizes = [question.sizes for question in questions]
    longest_first = sorted(range(len(sizes)), key=lambda i: -sum(sizes[i]))
    rows = [
      [questions[i] for i in row]
      for row in packing.best_fit(sizes, longest_first, length)
    ]
    for start in range(0, len(rows), batch_size):
      chunk = rows[start : start + batch_size]
      yield _choice_batch(chunk, batch_size, length, first)


def pad_prompts(
  task, tokenizer, split: str = 'eval', **settings
) -> Iterator[PromptBatch]:
  """Prompts for generation, as the encoder reads them.

  Arguments and batches are those of `lora_opt.data.eval_batching.pad_prompts`.
  """
  return eval_batching.pad_prompts(
    task,
    tokenizer,
    split,
    encode=lambda example: encode(task, tokenizer, example, ())[0],
    **settings,
  )


class _Question(NamedTuple):
  """One example with its choices."""

  index: int
  prompt: Sequence[int]
  choices: Sequence[Sequence[int]]
  unscored: Sequence[int]  # number of leading ids without weight, per choice

  @property
  def sizes(self) -> packing.Sizes:
    return len(self.prompt), sum(map(len, self.choices))


def _choice_batch(
  rows: Sequence[Sequence[_Question]],
  batch_size: int,
  length: tuple[int, int],
  first: int,
) -> ChoiceBatch:
  batch = [
    _empty_row(*length) | {'branches': np.zeros(length[1], np.int32)}
    for _ in range(batch_size)
  ]
  example, choice = np.zeros((2, batch_size, length[1]), np.int32)
  for row, questions in enumerate(rows):
    arrays, read, written = batch[row], 0, 0
    for number, question in enumerate(questions, 1):
      read = _put_inputs(arrays, question.prompt, number, read)
      for k, ids in enumerate(question.choices):
        place = slice(written, written + len(ids))
        arrays['branches'][place] = k + 1
        example[row, place], choice[row, place] = question.index, k
        written = _put_targets(arrays, ids, first, number, written)
        arrays['weights'][place.start : place.start + question.unscored[k]] = 0
  stacked = {name: np.stack([a[name] for a in batch]) for name in batch[0]}
  return ChoiceBatch(stacked, example, choice)


def _empty_row(inputs: int, targets: int) -> packing.Row:
  row = {
    name: np.zeros(inputs, np.int32)
    for name in ('encoder_tokens', 'encoder_segment_ids')
  }
  for name in ('tokens', 'targets', 'segment_ids'):
    row[name] = np.zeros(targets, np.int32)
  return row | {'weights': np.zeros(targets, np.float32)}


def _put_inputs(
  row: packing.Row, ids: Sequence[int], number: int, start: int
) -> int:
  """Writes a prompt into a row; returns where the next one starts."""
  place = slice(start, start + len(ids))
  row['encoder_tokens'][place] = ids
  row['encoder_segment_ids'][place] = number
  return place.stop


def _put_targets(
  row: packing.Row, ids: Sequence[int], first: int, number: int, start: int
) -> int:
  """Writes a completion into a row; returns where the next one starts."""
  place = slice(start, start + len(ids))
  row['tokens'][place] = [first, *ids[:-1]]
  row['targets'][place] = ids
  row['weights'][place] = 1
  row['segment_ids'][place] = number
  return place.stop
