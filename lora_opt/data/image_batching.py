"""The form 'image': an image in, a label out.

  images   (rows, height, width, 3) uint8, of the size that the model reads
  labels   (rows, 1) float32, the index of the label
  weights  (rows, 1) float32, 0 for a row without an image

Images are decoded each time they are needed. Random augmentations follow from
the seed, the number of the epoch and the place of the image in it. So a resumed
run sees the same pixels, whichever process makes the batch.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from absl import logging

from lora_opt.data.images import Augmentation, Fit, ImageFile, ImageProcessor
from lora_opt.data.images.fitting import NO_AUGMENTATION
from lora_opt.data.order import Order
from lora_opt.data.packing import Row, Sizes
from lora_opt.data.stream import Batches
from lora_opt.data.text_batching import LabelBatch

CHANNELS = 3


class LabelledImage(NamedTuple):
  """One example of the form 'image'."""

  image: ImageFile
  label: int
  augmentation: Augmentation

  @classmethod
  def of(cls, task, example, augmentation: Augmentation) -> Self:
    """Makes one from an example of a task.

    Raises:
      ValueError: the example has no image.
    """
    if example.image is None:
      raise ValueError(
        f'task {task.name!r} of kind {task.kind} has no images, and the model '
        'looks at images: it needs one of kind image_classification'
      )
    return cls(example.image, example.answer, augmentation)

  @classmethod
  def capacity(cls, length: tuple[int, int]) -> Sizes:
    """The height and width of the image in a row."""
    return length

  @classmethod
  def row(cls, examples: Sequence[Self], length: tuple[int, int]) -> Row:
    """The arrays of one row (see the module), with a black image."""
    return {
      'images': np.zeros((*length, CHANNELS), np.uint8),
      'labels': np.array([e.label for e in examples] or [0], np.float32),
      'weights': np.array([float(bool(examples))], np.float32),
    }

  def checksum(self, start: int) -> int:
    """CRC-32 of the example, continued from `start`."""
    said = f'{self.image.digest} {self.label} {self.augmentation!r}'
    return zlib.crc32(said.encode(), start)


class Drawn(NamedTuple):
  """An image of an epoch, with what determines its augmentation."""

  epoch: int
  place: int  # in the epoch
  index: int  # of the example


class ImageRows(NamedTuple):
  """Labelled images in order, one per row; see `lora_opt.data.packing.Rows`.

  Attributes:
    examples: The examples of all tasks, concatenated.
    order: The order in which an epoch reads them. Without a seed, images are
      not augmented.
    fit: The size of the images.
  """

  examples: Sequence[LabelledImage]
  order: Order
  fit: Fit

  def plan(self, epoch: int) -> list[list[Drawn]]:
    """The image of each row of an epoch."""
    indices = self.order.indices(epoch, self.order.rng(epoch))
    return [[Drawn(epoch, *item)] for item in enumerate(indices)]

  def row(self, items: Sequence[Drawn]) -> Row:
    """The arrays of one row; of an empty row if no image is given."""
    examples = [self.examples[item.index] for item in items]
    size = self.fit.height, self.fit.width
    row = LabelledImage.row(examples, size)
    for item, example in zip(items, examples, strict=True):
      pixels = example.image.pixels()
      if self.order.seed is None:
        row['images'] = self.fit(pixels)
      else:
        # The 2 keeps this key apart from the keys of the order.
        key = self.order.seed, item.epoch, item.place, 2
        row['images'] = example.augmentation(pixels, self.fit, key)
    return row

  def fingerprint(self) -> int:
    """A number that changes with the examples, their order and their size."""
    total = zlib.crc32(repr((self.fit, self.order)).encode())
    for example in self.examples:
      total = example.checksum(total)
    return total


def train_batches(
  task,
  processor: ImageProcessor,
  *,
  batch_size: int,
  seed: int,
  rows: Sequence[int] | None = None,
  workers: int = 0,
  length: object = None,
  packing: bool = False,
) -> Batches:
  """Endless batches for training, in an order set by the seed.

  Args:
    task: an ImageClassification, or a mixture of them.
    processor: the model's image processor.
    batch_size: rows in a batch, over all processes.
    seed: seed of the order and of the augmentations.
    rows: which rows of each batch to keep, in this order; None keeps all.
    workers: number of processes that decode ahead of time; 0 makes each batch
      when it is asked for.
    length, packing: arguments for other forms, ignored here.

  Returns:
    A dataset; see `lora_opt.data.batching.train_batches`.

  Raises:
    ValueError: a task has no images.
  """
  del length, packing
  parts = getattr(task, 'tasks', (task,))
  rates = task.mixing_rates() if hasattr(task, 'tasks') else None
  labelled = [_labelled(part, 'train') for part in parts]
  order = Order(tuple(map(len, labelled)), rates, seed)
  examples = [example for those in labelled for example in those]
  return Batches(
    ImageRows(examples, order, processor.fit),
    batch_size,
    keep=rows,
    workers=workers,
    summary=[
      {'task': part.name, 'rate': rate, 'examples': len(those)}
      for part, those, rate in zip(
        parts, labelled, rates or (1.0,), strict=True
      )
    ],
  )


def eval_batches(
  task,
  processor: ImageProcessor,
  *,
  batch_size: int,
  indices: Sequence[int] | None = None,
  **unused,
) -> Batches:
  """Every image once, in order; the last batch is padded with empty rows."""
  del unused
  examples = _labelled(task, 'eval', indices)
  order = Order((len(examples),))
  rows = ImageRows(examples, order, processor.fit)
  return Batches(rows, batch_size, epochs=1)


@dataclasses.dataclass(frozen=True)
class LabelBatches:
  """Images to label, decoded one batch at a time during iteration."""

  rows: ImageRows
  numbers: Sequence[int]
  batch_size: int

  def __len__(self) -> int:
    return -(-len(self.numbers) // self.batch_size)

  def __iter__(self) -> Iterator[LabelBatch]:
    batches = Batches(self.rows, self.batch_size, epochs=1)
    for start, batch in zip(
      range(0, len(self.numbers), self.batch_size), iter(batches), strict=True
    ):
      numbers = list(self.numbers[start : start + self.batch_size])
      numbers += [-1] * (self.batch_size - len(numbers))
      yield LabelBatch(batch, np.array(numbers, np.int32))


def label_batches(
  task,
  processor: ImageProcessor,
  split: str = 'eval',
  *,
  batch_size: int = 8,
  longest: int = 0,
  indices: Sequence[int] | None = None,
) -> LabelBatches:
  """Images to label: every example of a split once.

  Args:
    task: an ImageClassification.
    processor: the model's image processor.
    split: 'train' or 'eval'.
    batch_size: images in a batch.
    longest: an argument for other forms, ignored here.
    indices: the examples to use; None takes all.

  Raises:
    ValueError: the task has no images.
  """
  del longest
  examples = _labelled(task, split, indices)
  rows = ImageRows(examples, Order((len(examples),)), processor.fit)
  numbers = range(len(examples)) if indices is None else indices
  return LabelBatches(rows, numbers, batch_size)


def _labelled(
  task, split: str, indices: Sequence[int] | None = None
) -> list[LabelledImage]:
  examples = task.examples(split)
  chosen = range(len(examples)) if indices is None else indices
  drawn = getattr(task, 'augmentation', NO_AUGMENTATION)
  if split != 'train':
    drawn = NO_AUGMENTATION
  found = [LabelledImage.of(task, examples[i], drawn) for i in chosen]
  logging.info('task %r, %s: %d images', task.name, split, len(found))
  return found
