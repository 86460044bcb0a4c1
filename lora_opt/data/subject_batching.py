"""The form 'text_to_image': pictures with captions.

  images   (rows, height, width, 3) uint8
  tokens   (rows, length) int32, the caption as the text encoder reads it
  weights  (rows, 1) float32, what a row's loss is multiplied by
  counts   (rows, 1) float32, what it counts in the number that the sum of
           losses is divided by

In training every other row is of the class, if there is one. These have the
weight of the class and count 0, the others 1 and 1, so that the loss is the
mean over the subject plus that weight times the mean over the class. A picture
comes again once all of its kind have come. Batches for the loss at fixed noise
have no counts, and

  noise_seeds  (rows,) uint32
  timesteps    (rows,) int32
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from absl import logging

from lora_opt.data.captions import caption_ids, padded
from lora_opt.data.images import Augmentation, Fit, ImageFile
from lora_opt.data.packing import Row, Sizes
from lora_opt.data.stream import Batches
from lora_opt.reading import values

CHANNELS = 3
# Height and width of an image, tokens of a caption.
Length = tuple[int, int, int]


class CaptionedImage(NamedTuple):
  """One example of the form."""

  image: ImageFile
  tokens: np.ndarray  # (length,) int32, of the caption

  @classmethod
  def capacity(cls, length: Length) -> Sizes:
    """What there must be room for."""
    return length

  @classmethod
  def row(cls, examples: Sequence[Self], length: Length) -> Row:
    """The arrays of the module for one row, its image left black."""
    height, width, tokens = length
    return {
      'images': np.zeros((height, width, CHANNELS), np.uint8),
      'tokens': examples[0].tokens if examples else np.zeros(tokens, np.int32),
      'weights': np.array([float(bool(examples))], np.float32),
      'counts': np.array([float(bool(examples))], np.float32),
    }

  def checksum(self, start: int) -> int:
    """CRC-32 of the example, going on from `start`."""
    start = zlib.crc32(self.image.digest.encode(), start)
    return zlib.crc32(self.tokens.tobytes(), start)


class Drawn(NamedTuple):
  """A picture, by what decides how it is drawn."""

  part: int  # 0 for the subject, 1 for its class
  count: int  # how many of the part come before it
  index: int


class SubjectRows(NamedTuple):
  """Rows of subject and class in turn; see `lora_opt.data.packing.Rows`.

  Attributes:
    parts: The pictures of the subject and, if there are any, of the class.
    length: Of a row.
    class_weight: Of the class.
    augmentation: What is drawn of a picture.
    seed: Of order and augmentations.
  """

  parts: Sequence[Sequence[CaptionedImage]]
  length: Length
  class_weight: float
  augmentation: Augmentation
  seed: int

  def plan(self, epoch: int) -> list[list[Drawn]]:
    """The picture of each row while every one of the subject comes once."""
    count = len(self.parts[0])
    return [
      [self._drawn(part, number)]
      for number in range(epoch * count, (epoch + 1) * count)
      for part in range(len(self.parts))
    ]

  def row(self, items: Sequence[Drawn]) -> Row:
    """The arrays of one row; of an empty one if no picture is given."""
    examples = [self.parts[item.part][item.index] for item in items]
    row = CaptionedImage.row(examples, self.length)
    for item, example in zip(items, examples, strict=True):
      key = self.seed, item.part, item.count, 2  # the 2: no key of the order
      pixels = example.image.pixels()
      row['images'] = self.augmentation(pixels, _fit(self.length), key)
      if item.part:
        row['weights'][:] = self.class_weight
        row['counts'][:] = 0
    return row

  def fingerprint(self) -> int:
    """A number that changes with everything that decides what rows hold."""
    total = zlib.crc32(repr(self[1:]).encode())
    for number, part in enumerate(self.parts):
      total = zlib.crc32(b'%d %d' % (number, len(part)), total)
      for example in part:
        total = example.checksum(total)
    return total

  def _drawn(self, part: int, number: int) -> Drawn:
    again, place = divmod(number, len(self.parts[part]))
    rng = np.random.default_rng((self.seed, part, again, 1))
    order = rng.permutation(len(self.parts[part]))
    return Drawn(part, number, int(order[place]))


def train_batches(
  task,
  tokenizer,
  *,
  length: Length,
  batch_size: int,
  seed: int,
  rows: Sequence[int] | None = None,
  workers: int = 0,
  packing: bool = False,
) -> Batches:
  """Batches to train on, without end and in an order set by the seed.

  Args:
    task: a SubjectGeneration.
    tokenizer: of the model.
    length: height and width of its images, tokens of its captions.
    batch_size: rows in a batch, over all processes; half of them of the class.
    seed: of order and augmentations.
    rows: which rows of each batch to keep, in this order; None keeps all.
    workers: processes that make batches ahead; 0 makes each when asked for.
    packing: of other forms, without effect.

  Returns:
    A dataset; see `lora_opt.data.batching.train_batches`.

  Raises:
    ValueError: the task has no pictures, a caption is too long, or half of a
      batch is not a number of rows.
  """
  del packing
  _check(task)
  length = sized(task, length)
  splits = ('train', 'class') if task.with_class else ('train',)
  if len(splits) > 1 and batch_size % 2:
    raise ValueError(
      f'batch_size={batch_size} (--gin.BATCH_SIZE): every other row is of the '
      'class, so it must be even'
    )
  encoded = [_encoded(task, tokenizer, split, length) for split in splits]
  parts, cut = zip(*encoded, strict=True)
  return Batches(
    SubjectRows(parts, length, task.class_weight, task.augmentation, seed),
    batch_size,
    keep=rows,
    workers=workers,
    summary=[
      {
        'task': task.name,
        'rate': 1.0,
        'examples': len(parts[0]),
        'too_long': sum(cut),
        'too_long_policy': task.too_long,
      }
    ],
  )


def eval_batches(task, tokenizer, **settings) -> Batches:
  """In the place of batches whose noise would be drawn anew each time."""
  raise ValueError(
    f'task {task.name!r} is evaluated at fixed noise, by '
    'evaluation.pictures.PictureEvaluator'
  )


class NoiseBatch(NamedTuple):
  """Rows for the loss at fixed noise, and what they are."""

  arrays: Row
  example: np.ndarray  # (rows,) int32: index in the split, -1 for empty rows


@dataclasses.dataclass(frozen=True)
class NoiseBatches:
  """Every picture of a split several times, each at its own time and noise.

  The times of a picture are spread evenly over all there are: one is drawn of
  each part of equal length. Seed, number of the picture and of the draw decide
  them, and nothing else: whatever is evaluated, it is at the same noise.
  """

  examples: Sequence[CaptionedImage]
  length: Length
  draws: int
  timesteps: int
  batch_size: int
  seed: int

  def __len__(self) -> int:
    return -(-len(self.examples) * self.draws // self.batch_size)

  def time(self, example: int, draw: int) -> int:
    """The time of a draw."""
    share = np.random.default_rng((self.seed, example, draw, 1)).random()
    return int((draw + share) / self.draws * self.timesteps)

  def __iter__(self) -> Iterator[NoiseBatch]:
    empty = CaptionedImage.row([], self.length)
    del empty['counts']
    empty |= {'noise_seeds': np.uint32(0), 'timesteps': np.int32(0)}
    rows = self._rows()
    for _ in range(len(self)):
      chunk = [next(rows, (-1, empty)) for _ in range(self.batch_size)]
      numbers, arrays = zip(*chunk, strict=True)
      yield NoiseBatch(
        {name: np.stack([row[name] for row in arrays]) for name in empty},
        np.array(numbers, np.int32),
      )

  def _rows(self) -> Iterator[tuple[int, Row]]:
    fit = _fit(self.length)
    for number, example in enumerate(self.examples):
      pixels = fit(example.image.pixels())
      for draw in range(self.draws):
        rng = np.random.default_rng((self.seed, number, draw, 2))
        yield (
          number,
          {
            'images': pixels,
            'tokens': example.tokens,
            'weights': np.ones(1, np.float32),
            'noise_seeds': np.uint32(rng.integers(2**32)),
            'timesteps': np.int32(self.time(number, draw)),
          },
        )


def noise_batches(
  task,
  tokenizer,
  *,
  length: Length,
  draws: int,
  timesteps: int,
  batch_size: int,
  seed: int,
) -> NoiseBatches:
  """Batches for the loss of the evaluated pictures.

  Args:
    task: a SubjectGeneration.
    tokenizer: of the model.
    length: as of `train_batches`.
    draws: how often each picture comes.
    timesteps: how many times there are.
    batch_size: rows in a batch; the last one is filled up with empty rows.
    seed: of times and noise.
  """
  _check(task)
  length = sized(task, length)
  examples, _ = _encoded(task, tokenizer, 'eval', length)
  return NoiseBatches(examples, length, draws, timesteps, batch_size, seed)


def sized(task, length: Length) -> Length:
  """The length of a row with the size that a task asks for."""
  return length if task.size is None else (task.size, task.size, length[-1])


def _fit(length: Length) -> Fit:
  height, width, _ = length
  return Fit(height, width, shorter=max(height, width))


def _check(task) -> None:
  kind = getattr(task, 'kind', None)
  if kind != 'text_to_image':
    raise ValueError(
      f'task {task.name!r} is of kind {kind}, and the model draws pictures: it '
      'needs one of kind text_to_image (configs/tasks/dreambooth.gin)'
    )


def _encoded(
  task, tokenizer, split: str, length: Length
) -> tuple[list[CaptionedImage], int]:
  """The examples of a split, and how many captions were too long."""
  examples, room = task.examples(split), length[-1]
  found, cut = [], 0
  for index, example in enumerate(examples):
    ids = caption_ids(tokenizer, example.prompt)
    if len(ids) > room:
      cut += 1
      if task.too_long == 'error':
        raise too_long(task, example.prompt, len(ids), room, split, index)
      if task.too_long == 'drop' and split != 'eval':
        continue
    tokens = padded(tokenizer, ids, room)
    found.append(CaptionedImage(example.image, tokens))
  if not found:
    raise ValueError(
      f'task {task.name!r}: every caption of split {split} has more than the '
      f"{room} tokens that the text encoder reads; too_long='truncate' cuts "
      'them'
    )
  if cut:
    logging.warning(
      'task %r, %s: %d of %d captions are longer than the %d tokens that the '
      'text encoder reads', task.name, split, cut, len(examples), room,
    )  # fmt: skip
  return found, cut


def too_long(
  task, prompt: str, size: int, room: int, *place: Any
) -> ValueError:
  """The error for a text that a text encoder cannot read whole."""
  where = ' example '.join(map(str, place)) or 'sample_prompts'
  return ValueError(
    f'task {task.name!r}, {where}: the text {values.shown(prompt)} has {size} '
    f'tokens with those that open and end it, the text encoder reads {room}: '
    "shorten it, or set too_long='truncate' to have it cut"
  )
