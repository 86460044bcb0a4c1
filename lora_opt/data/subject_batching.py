"""The form 'text_to_image': pictures with captions.

  images   (rows, height, width, 3) uint8
  tokens   (rows, length) int32, the caption as the text encoder reads it
  weights  (rows, 1) float32, what a row's loss is multiplied by
  counts   (rows, 1) float32, what a row adds to the number that the sum of
           losses is divided by

If there are class pictures, every other row in training is one. Class rows have
the weight of the class and count 0; subject rows have weight 1 and count 1. The
loss is thus the mean over the subject plus the class weight times the mean over
the class. No picture is repeated before all others of its kind have been used.
Batches for the loss at fixed noise have no counts, but also

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
# Height and width of an image, and tokens in a caption.
Length = tuple[int, int, int]


class CaptionedImage(NamedTuple):
  """One example of the form 'text_to_image'."""

  image: ImageFile
  tokens: np.ndarray  # (length,) int32, of the caption

  @classmethod
  def capacity(cls, length: Length) -> Sizes:
    """The capacity of a row, which is its length."""
    return length

  @classmethod
  def row(cls, examples: Sequence[Self], length: Length) -> Row:
    """The arrays of one row as in the module docstring, with a black image."""
    height, width, tokens = length
    return {
      'images': np.zeros((height, width, CHANNELS), np.uint8),
      'tokens': examples[0].tokens if examples else np.zeros(tokens, np.int32),
      'weights': np.array([float(bool(examples))], np.float32),
      'counts': np.array([float(bool(examples))], np.float32),
    }

  def checksum(self, start: int) -> int:
    """CRC-32 of the example, continued from `start`."""
    start = zlib.crc32(self.image.digest.encode(), start)
    return zlib.crc32(self.tokens.tobytes(), start)


class Drawn(NamedTuple):
  """A picture chosen for a row, with what determines its augmentation."""

  part: int  # 0 for the subject, 1 for its class
  count: int  # how many pictures of the part come before it
  index: int


class SubjectRows(NamedTuple):
  """Alternating rows of subject and class; see `lora_opt.data.packing.Rows`.

  Attributes:
    parts: The pictures of the subject and, if there are any, of the class.
    length: Length of a row.
    class_weight: Weight of the class in the loss.
    augmentation: The random augmentation of the pictures.
    seed: Seed of order and augmentations.
  """

  parts: Sequence[Sequence[CaptionedImage]]
  length: Length
  class_weight: float
  augmentation: Augmentation
  seed: int

  def plan(self, epoch: int) -> list[list[Drawn]]:
    """The picture of each row of an epoch, with each subject picture once."""
    count = len(self.parts[0])
    return [
      [self._drawn(part, number)]
      for number in range(epoch * count, (epoch + 1) * count)
      for part in range(len(self.parts))
    ]

  def row(self, items: Sequence[Drawn]) -> Row:
    """The arrays of one row, or of an empty row if no picture is given."""
    examples = [self.parts[item.part][item.index] for item in items]
    row = CaptionedImage.row(examples, self.length)
    for item, example in zip(items, examples, strict=True):
      key = self.seed, item.part, item.count, 2  # keys of the order end in 1
      pixels = example.image.pixels()
      row['images'] = self.augmentation(pixels, _fit(self.length), key)
      if item.part:
        row['weights'][:] = self.class_weight
        row['counts'][:] = 0
    return row

  def fingerprint(self) -> int:
    """A checksum of everything that determines the contents of the rows."""
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
  """Endless training batches in an order determined by the seed.

  Args:
    task: a SubjectGeneration.
    tokenizer: the model's tokenizer.
    length: height and width of the model's images, and tokens in its captions.
    batch_size: rows in a batch, over all processes. If there are class
      pictures, half of the rows are of the class.
    seed: seed of order and augmentations.
    rows: which rows of each batch to keep, in this order; None keeps all.
    workers: number of processes that make batches ahead of time; 0 makes each
      batch when it is requested.
    packing: used by other forms; has no effect here.

  Returns:
    A dataset; see `lora_opt.data.batching.train_batches`.

  Raises:
    ValueError: the task has no pictures, a caption is too long, or `batch_size`
      is odd although half of the rows are of the class.
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
  """Raises ValueError: the noise of such batches would differ every time."""
  raise ValueError(
    f'task {task.name!r} is evaluated at fixed noise, by '
    'evaluation.pictures.PictureEvaluator'
  )


class NoiseBatch(NamedTuple):
  """Rows for the loss at fixed noise, and which examples they hold."""

  arrays: Row
  example: np.ndarray  # (rows,) int32: index in the split, -1 for empty rows


@dataclasses.dataclass(frozen=True)
class NoiseBatches:
  """Every picture of a split several times, each at its own timestep and noise.

  The timesteps of a picture are spread evenly: their range is divided into
  `draws` parts of equal length, and one timestep is drawn from each. Timesteps
  and noise depend only on the seed and on the numbers of the picture and of the
  draw, so every model is evaluated at the same noise.
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
    """The timestep of a draw."""
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
  """Batches for the loss of the evaluation pictures at fixed noise.

  Args:
    task: a SubjectGeneration.
    tokenizer: the model's tokenizer.
    length: as in `train_batches`.
    draws: how many times each picture is used.
    timesteps: number of timesteps to draw from.
    batch_size: rows in a batch; the last one is filled up with empty rows.
    seed: seed of timesteps and noise.
  """
  _check(task)
  length = sized(task, length)
  examples, _ = _encoded(task, tokenizer, 'eval', length)
  return NoiseBatches(examples, length, draws, timesteps, batch_size, seed)


def sized(task, length: Length) -> Length:
  """The length of a row, with the image size that the task asks for, if any."""
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
  """The error for a text that is too long for the text encoder."""
  where = ' example '.join(map(str, place)) or 'sample_prompts'
  return ValueError(
    f'task {task.name!r}, {where}: the text {values.shown(prompt)} has {size} '
    f'tokens with those that open and end it, the text encoder reads {room}: '
    "shorten it, or set too_long='truncate' to have it cut"
  )
