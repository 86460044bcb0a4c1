"""The form 'encoder': a text or a pair of texts in, a label or a number out.

The tokenizer's own template puts the special tokens around the texts and says
which text each token belongs to. For training, several examples share a row.
Each is a segment with its own label; that of segment s is in column s - 1:

  tokens       [CLS] a a [SEP] b [SEP] [CLS] c c c [SEP] 0 ...
  token_types    0   0 0   0   1   1     0   0 0 0   0   0
  positions      0   1 2   3   4   5     0   1 2 3   4   0
  segment_ids    1   1 1   1   1   1     2   2 2 2   2   0
  labels         y1  y2  0 ...
  weights        1   1   0 ...

To predict labels (`label_batches`), each example has its own row, of the
shortest length it fits.
"""

import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

from lora_opt.data import batching
from lora_opt.data.packing import Row, Sizes

KINDS = ('classification', 'regression')
LENGTHS = (16, 32, 64, 128, 256, 512, 1024)  # of rows for evaluation
POSITIONS_PER_SEGMENT = 8  # limits the number of segments in a row
SPECIAL = -1


class LabelledTexts(NamedTuple):
  """One example of the form 'encoder': see lora_opt.data.packing.Encoded."""

  ids: np.ndarray  # (n,) int32
  types: np.ndarray  # (n,) int8, for the model's table of token types
  texts: np.ndarray  # (n,) int8, which text a token belongs to, or SPECIAL
  label: float  # index of a label, or the number of a regression

  @classmethod
  def of_all(cls, task, examples, tokenizer) -> list[Self]:
    return [cls.of(task, example, tokenizer) for example in examples]

  @classmethod
  def of(cls, task, example, tokenizer) -> Self:
    if task.kind not in KINDS:
      raise ValueError(
        f'task {task.name!r} is of kind {task.kind}, and an encoder says '
        f'labels or numbers: it needs one of {", ".join(KINDS)}'
      )
    encoded = tokenizer.encode_texts(*(example.texts or (example.prompt,)))
    texts = [SPECIAL if text is None else text for text in encoded.texts]
    return cls(
      np.array(encoded.ids, np.int32),
      np.array(encoded.types, np.int8),
      np.array(texts, np.int8),
      float(example.answer if example.number is None else example.number),
    )

  @classmethod
  def capacity(cls, length: int) -> Sizes:
    return (length, -(-length // POSITIONS_PER_SEGMENT))

  @classmethod
  def row(cls, examples: Sequence[Self], length: int) -> Row:
    """The module docstring's arrays: (length,) int32, (segments,) float32."""
    return cls.filled(examples, *cls.capacity(length))

  @classmethod
  def filled(cls, examples: Sequence[Self], length: int, segments: int) -> Row:
    """The arrays of a row with `segments` columns for labels."""
    row = {
      name: np.zeros(length, np.int32)
      for name in ('tokens', 'token_types', 'positions', 'segment_ids')
    }
    row |= {n: np.zeros(segments, np.float32) for n in ('labels', 'weights')}
    start = 0
    for number, example in enumerate(examples):
      place = slice(start, start + len(example.ids))
      row['tokens'][place] = example.ids
      row['token_types'][place] = example.types
      row['positions'][place] = np.arange(len(example.ids))
      row['segment_ids'][place] = number + 1
      row['labels'][number] = example.label
      row['weights'][number] = 1
      start = place.stop
    return row

  @property
  def sizes(self) -> Sizes:
    return (len(self.ids), 1)

  def truncated(self, length: int) -> Self:
    """Cuts the end of the longer text; of both once they are equally long."""
    sizes = [int(np.sum(self.texts == text)) for text in (0, 1)]
    room = max(0, length - len(self.ids) + sum(sizes))
    if sum(sizes) > room:
      shorter = min(*sizes, room // 2)
      longer = int(sizes[1] >= sizes[0])
      sizes = [shorter, shorter]
      sizes[longer] = room - shorter
    keep = self.texts == SPECIAL
    for text, size in enumerate(sizes):
      keep[np.flatnonzero(self.texts == text)[:size]] = True
    return self._replace(
      ids=self.ids[keep], types=self.types[keep], texts=self.texts[keep]
    )

  def checksum(self, start: int) -> int:
    for array in (self.ids, self.types, np.float64(self.label)):
      start = zlib.crc32(array.tobytes(), start)
    return start


train_batches = functools.partial(batching.train_batches, kind=LabelledTexts)
eval_batches = functools.partial(
  batching.eval_batches, kind=LabelledTexts, too_long='truncate'
)


class LabelBatch(NamedTuple):
  """Rows of one example each, and the indices of these examples."""

  arrays: Row  # (rows, length) and (rows, 1): what the model takes
  example: np.ndarray  # (rows,) int32: index in the split, -1 for empty rows


def label_batches(
  task,
  tokenizer,
  split: str = 'eval',
  *,
  batch_size: int = 8,
  longest: int = 512,
  indices: Sequence[int] | None = None,
) -> Iterator[LabelBatch]:
  """Rows to predict on: every example of a split once.

  Args:
    task: a Classification or a Regression.
    tokenizer: see lora_opt.data.tokenizer.
    split: 'train' or 'eval'.
    batch_size: rows in a batch.
    longest: number of positions that the model has. Longer texts are cut, since
      every example needs a prediction; how many were cut is logged.
    indices: indices of the examples to use; None uses all.

  Yields:
    Batches of (batch_size, one of `LENGTHS` or `longest`), short ones first.

  Raises:
    ValueError: the task has no labels.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size} must be at least 1')
  encoded = batching.encode_split(
    task,
    tokenizer,
    split,
    length=longest,
    too_long='truncate',
    indices=indices,
    kind=LabelledTexts,
  )
  batching.log_split(task, split, encoded)
  numbers = range(encoded.total) if indices is None else indices
  lengths = [length for length in LENGTHS if length < longest] + [longest]
  buckets = {length: [] for length in lengths}
  for number, example in zip(numbers, encoded.examples, strict=True):
    fitting = next(length for length in lengths if example.sizes[0] <= length)
    buckets[fitting].append((number, example))
  for length, members in buckets.items():
    for start in range(0, len(members), batch_size):
      chunk = members[start : start + batch_size]
      chunk += [(-1, None)] * (batch_size - len(chunk))
      rows = [
        LabelledTexts.filled([example] if example else [], length, 1)
        for _, example in chunk
      ]
      yield LabelBatch(
        {name: np.stack([row[name] for row in rows]) for name in rows[0]},
        np.array([number for number, _ in chunk], np.int32),
      )
