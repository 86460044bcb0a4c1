"""Image tasks, such as classification."""

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
  """What all image tasks share.

  Every file is read and decoded completely before anything is computed.
  lora_opt.data.images.files says which files are refused, and `on_bad` what
  happens then. An evaluation example counts as also in the training split if a
  training image has the same bytes.

  Attributes:
    image: name of the field that holds the path of the image.
    augmentation: the random changes that are made each time an image is
      trained on; none by default.
    max_image_bytes: maximum size of a file in bytes.
    max_image_pixels: maximum number of pixels that its header may declare;
      larger images are never decoded.
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
        continue  # raised again when the row is asked for
      if isinstance(path, str):
        paths.append(path)
    self._files.look_ahead(paths)

  def image_of(self, record: Record) -> ImageFile:
    """The image of a row.

    Raises:
      ValueError: the image is refused; the message says where the row is from.
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
  """The total size of the image files, and a checksum of all of them."""
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
  """Images with one of a few labels; for image models.

  Args:
    label: name of the field that holds the label, as its name or its index in
      `label_names`.
    label_names: the names of the labels, in the order of the model's outputs.
      None takes the names of the source's folders, or else the different texts
      in the label field, in alphabetical order.

  The other fields are those of every ImageTask; `prompt` and `texts` must not
  be set.

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
    """The names of the labels, in the order of the model's outputs."""
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
    # Only the end of the path: the rest differs between machines.
    prompt = '/'.join(pathlib.PurePath(image.path).parts[-2:])
    answer = names.index(label)
    return Example(prompt, label, names, answer, record.row, image=image)

  def facts(self) -> dict[str, Any]:
    return super().facts() | {'classes': list(self.class_names)}

  def _found_labels(self) -> list[str]:
    """The different texts in the label field."""
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
