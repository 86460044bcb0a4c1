"""Tasks of images: which class is it?"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from lora_opt.data.examples import Example, Record
from lora_opt.data.images import Augmentation, ImageFile, ImageFiles
from lora_opt.data.images.files import MOST_BYTES, MOST_PIXELS
from lora_opt.data.images.fitting import NO_AUGMENTATION
from lora_opt.data.task import SPLITS, Task
from lora_opt.reading import values
from lora_opt.reading.values import shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
  """What all tasks of images share.

  Every file is looked at whole before anything is computed; which are refused
  says lora_opt.data.images.files, and what becomes of them `on_bad`. Questions
  that also stand in train are images of the same bytes.

  Attributes:
    image: name of the field that holds the path of the image.
    augmentation: what is drawn anew each time an image is trained on; by
      default nothing is.
    max_image_bytes: what a file may have.
    max_image_pixels: what its header may declare; more is never decoded.
  """

  image: str = 'image'
  augmentation: Augmentation = NO_AUGMENTATION
  max_image_bytes: int = MOST_BYTES
  max_image_pixels: int = MOST_PIXELS

  def __post_init__(self):
    super().__post_init__()
    ImageFiles(self.max_image_bytes, self.max_image_pixels)

  def look_ahead(self, split: str) -> None:
    source = self.source(split)
    paths = []
    for index in range(len(source)):
      try:
        path = source[index].get(self.image)
      except ValueError:
        continue  # said when the row is asked for
      if isinstance(path, str):
        paths.append(path)
    self._files.look_ahead(paths)

  def image_of(self, record: Record) -> ImageFile:
    """The image of a row.

    Raises:
      ValueError: it is none that is read; says where the row is from.
    """
    try:
      return self._files[record.text(self.image)]
    except (ValueError, FileNotFoundError) as error:
      if str(error).startswith(record.place):
        raise ValueError(str(error)) from None
      raise record.error(str(error)) from None

  def facts(self) -> dict[str, Any]:
    facts = super().facts()
    for split in SPLITS:
      facts[split] |= image_facts(self.examples(split))
    return facts

  def encode_prompt(self, example: Example, tokenizer) -> list[int]:
    raise ValueError(self._no_text)

  def encode_all(
    self, examples: Sequence[Example], tokenizer
  ) -> list[tuple[list[int], list[int]]]:
    raise ValueError(self._no_text)

  def encode_choices(
    self, example: Example, tokenizer
  ) -> tuple[list[int], list[list[int]]]:
    raise ValueError(self._no_text)

  @property
  def _no_text(self) -> str:
    return (
      f'task {self.name!r} is one of images, which models of texts do not see: '
      'take a model of images (configs/models/vit.gin)'
    )

  @functools.cached_property
  def _files(self) -> ImageFiles:
    return ImageFiles(self.max_image_bytes, self.max_image_pixels)


def image_facts(examples: Iterable[Example]) -> dict[str, Any]:
  """How large the files of images are together, and a checksum of all."""
  images = [example.image for example in examples]
  digest = hashlib.sha256()
  for image in images:
    digest.update(image.digest.encode())
  return {
    'image_bytes': sum(image.bytes for image in images),
    'image_sha256': digest.hexdigest(),
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClassification(ImageTask):
  """Images with one of a few labels; for models of images.

  Args:
    label: name of the field that holds the label: its name, or its index in
      `label_names`.
    label_names: what the labels are called, in the order of the model's
      outputs. None takes the names of the source's folders, or the different
      texts of its field, in alphabetical order.

  The other fields are those of every ImageTask; those about texts have no
  effect.

  >>> rows = [{'image': f'{n}.png', 'label': n} for n in ('cat', 'ant')]
  >>> ImageClassification(name='pets', train=rows, eval=rows).class_names
  ('ant', 'cat')
  """

  kind: ClassVar[str] = 'image_classification'
  prompt: str = ''
  label: str = 'label'
  label_names: Sequence[str] | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.prompt or self.texts is not None:
      raise ValueError(
        f'task {self.name!r}: prompt and texts are for models that read text'
      )
    if self.label_names is not None:
      self._check_names(self.label_names)

  @functools.cached_property
  def class_names(self) -> tuple[str, ...]:
    """What the labels are called, in the order of the model's outputs."""
    names = self.label_names
    if names is None:
      names = getattr(self.train, 'classes', None) or self._found_labels()
      self._check_names(names)
    return tuple(names)

  def example(self, record: Record) -> Example:
    names, label = self.class_names, record.field(self.label)
    if isinstance(label, int) and not isinstance(label, bool):
      if self.label_names is None or not 0 <= label < len(names):
        raise record.error(
          f'field {self.label!r} is {shown(label)}: numbers of labels need '
          f'label_names, from 0 to {len(names) - 1}'
        )
      label = names[label]
    if label not in names:
      raise record.error(
        f'field {self.label!r} must be a label, one of '
        f'{shown(", ".join(names), 400)}, found {shown(label)}'
      )
    image = self.image_of(record)
    # Without what stands before, which is another on another machine.
    prompt = '/'.join(pathlib.PurePath(image.path).parts[-2:])
    answer = names.index(label)
    return Example(prompt, label, names, answer, record.row, image=image)

  def facts(self) -> dict[str, Any]:
    return super().facts() | {'classes': list(self.class_names)}

  def _found_labels(self) -> list[str]:
    """The different texts in the field of the label."""
    found = set()
    for index in range(len(self.train)):
      try:
        label = self.train[index].get(self.label)
      except ValueError:
        continue
      if isinstance(label, str):
        found.add(label)
    return sorted(found)

  def _check_names(self, names: Sequence[str]) -> None:
    if (
      isinstance(names, str) or len(set(names)) != len(names) or len(names) < 2
    ):
      raise ValueError(
        f'task {self.name!r}: there must be two or more different labels, '
        f'found {shown(list(names))}; label_names gives them'
      )
    for name in names:
      values.text(name, f'task {self.name!r}: a label')
