"""The task of DreamBooth: learning a subject from a few pictures of it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from absl import logging

from lora_opt.buckets.paths import as_path, is_bucket
from lora_opt.data import sources, subject_batching
from lora_opt.data.captions import caption_ids
from lora_opt.data.examples import Example, Record, Template
from lora_opt.data.image_task import ImageTask, image_facts
from lora_opt.data.images import Augmentation
from lora_opt.data.task import SPLITS
from lora_opt.reading import values
from lora_opt.reading.copies import local_copy

CLASS = 'class'  # the split with pictures of other members of the class
_MOST_PROMPTS = 64
RANDOM_CROP = Augmentation(crop='random')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectGeneration(ImageTask):
  """Pictures of a subject with captions, for text-to-image models.

  The loss is that of DreamBooth: the mean over pictures of the subject plus
  `class_weight` times the mean over pictures of its class. Half of the rows of
  a batch are class pictures. They keep the model from forgetting the rest of
  the class (prior preservation). Without `class_prompt` there are none, and the
  loss is the first mean alone.

  Args:
    train: pictures of the subject: a folder of them, or a source such as a
      sources.ImageFolder.
    eval: other pictures of the subject, which are not trained on. None
      evaluates on those of train; the loss then says how well the model has
      memorised them.
    prompt: the caption. A field name in braces, such as {text}, stands for that
      field of a picture's row, as given in metadata.jsonl.
    class_prompt: the caption of the class pictures. None trains without the
      class.
    class_images: folder of the class pictures. If it is missing or has fewer
      than `class_count`, the model itself generates the rest before training.
      They are kept in MODEL_DIR.
    class_count: minimum number of class pictures.
    class_weight: what the mean loss of the class pictures is multiplied by.
    sample_prompts: prompts for the pictures that evaluation generates; by
      default the captions of the evaluation pictures.
    size: height and width in pixels; None for those that the weights were
      trained for.
    made_images: folder of the pictures that the model generated. Training sets
      it.
    too_long: what to do with captions of more tokens than the text encoder
      reads: 'error', 'truncate' or 'drop', see
      lora_opt.data.batching.encode_split.

  The other fields are those of every ImageTask. The default augmentation scales
  the shorter side to `size` and crops a square at a random position.

  References:
    Ruiz et al. 2023, DreamBooth, arXiv 2208.12242.

  >>> rows = [{'image': 'a.png'}]
  >>> task = SubjectGeneration(name='dog', train=rows, prompt='a sks dog')
  >>> task.source('eval') is rows
  True
  """

  kind: ClassVar[str] = 'text_to_image'
  train: Sequence[sources.Row] | str
  eval: Sequence[sources.Row] | str | None = None
  class_prompt: str | None = None
  class_images: str | None = None
  class_count: int = 100
  class_weight: float = 1.0
  sample_prompts: Sequence[str] = ()
  size: int | None = None
  made_images: str | None = None
  too_long: str = 'error'
  augmentation: Augmentation = RANDOM_CROP

  def __post_init__(self):
    super().__post_init__()
    place = f'task {self.name!r}'
    if isinstance(self.sample_prompts, str):
      raise ValueError(f'{place}: sample_prompts must be a list of texts')
    prompts = {'prompt': self.prompt, 'class_prompt': self.class_prompt}
    prompts |= {f'sample_prompts: {i}': p for i, p in enumerate(self.prompts)}
    for name, text in prompts.items():
      if text is not None and not values.text(text, f'{place}: {name}').strip():
        raise ValueError(
          f'{place}: {name} is empty; it is to say what a picture shows, such '
          "as 'a photo of sks dog'"
        )
    if len(self.prompts) > _MOST_PROMPTS:
      raise ValueError(
        f'{place}: {len(self.prompts)} sample_prompts, at most {_MOST_PROMPTS} '
        'are drawn'
      )
    if self.class_images is not None and self.class_prompt is None:
      raise ValueError(
        f'{place}: class_images={self.class_images!r} without class_prompt, '
        'the caption of its pictures'
      )
    if self.metrics:
      raise ValueError(
        f'{place}: metrics are those of texts and labels; what is drawn is '
        'judged by its validation loss'
      )
    values.integer(self.class_count, f'{place}: class_count', 1, 10**6)
    values.number(self.class_weight, f'{place}: class_weight', above=0)
    if self.size is not None:
      values.integer(self.size, f'{place}: size', 8, 2**13)

  @property
  def metric(self) -> str:
    return 'validation_loss'

  @property
  def prompts(self) -> Sequence[str]:
    """The texts of `sample_prompts`; () if the defaults are used."""
    return tuple(self.sample_prompts)

  @property
  def with_class(self) -> bool:
    """Whether pictures of the class are trained on too."""
    return self.class_prompt is not None

  def source(self, split: str) -> Sequence[sources.Row]:
    if split == CLASS:
      return self._class_rows
    if split == 'eval' and self.eval is None:
      split = 'train'
    found = super().source(split)
    return sources.ImageFolder(found) if isinstance(found, str) else found

  def validate(self, splits: Sequence[str] = SPLITS) -> None:
    """Like `Task.validate`; also checks the class pictures that exist."""
    if 'train' in splits and self.with_class and self._class_rows:
      splits = (*splits, CLASS)
    super().validate(splits)
    if self.eval is None and 'eval' in splits:
      logging.warning(
        'task %r has no pictures for validation alone: the loss is of those '
        'that are trained on',
        self.name,
      )

  def overlap(self) -> list[int]:
    return [] if self.eval is None else super().overlap()

  def facts(self) -> dict[str, Any]:
    facts = super().facts()
    if self.with_class:
      pictures = self.examples(CLASS)
      facts[CLASS] = {
        'folder': self.class_images,
        'made': len(self._made_rows),
        'examples': len(pictures),
        **image_facts(pictures),
      }
    return facts

  def example(self, record: Record) -> Example:
    template = self.class_prompt if record.split == CLASS else self.prompt
    caption = record.fill(template)
    if not caption.strip():
      raise record.error(f'the caption, made by {template!r}, is empty')
    return Example(caption, '', row=record.row, image=self.image_of(record))

  def missing_class_images(self) -> int:
    """How many pictures of the class the model itself has to generate.

    Raises:
      ValueError: there are some, and `class_prompt` has fields, which generated
        pictures do not have.
    """
    if not self.with_class:
      return 0
    there = len(_rows_of(self.class_images))
    if there < self.class_count and (
      fields := Template(self.class_prompt).fields
    ):
      raise ValueError(
        f'task {self.name!r}: class_prompt={self.class_prompt!r} has the field '
        f'{fields[0]!r}, which no picture has that the model makes itself; '
        f'there are {there} in class_images={self.class_images!r}, and '
        f'class_count is {self.class_count}'
      )
    return max(0, self.class_count - there)

  def with_made_images(self, folder: str) -> 'SubjectGeneration':
    """The task with the class pictures that the model generated."""
    return dataclasses.replace(self, made_images=folder)

  def drawn_prompts(self) -> list[str]:
    """The prompts for the pictures that evaluation generates."""
    if self.prompts:
      return list(self.prompts)
    found = {example.prompt: None for example in self.examples('eval')}
    return list(found)[:_MOST_PROMPTS]

  def check_captions(
    self, texts: Sequence[str], tokenizer: Any, length: int
  ) -> None:
    """Raises ValueError if a prompt is too long and `too_long` is 'error'.

    Args:
      texts: the prompts for pictures to generate.
      tokenizer: the model's tokenizer.
      length: how many tokens the model reads.
    """
    for text in texts if self.too_long == 'error' else ():
      if (size := len(caption_ids(tokenizer, text))) > length:
        raise subject_batching.too_long(self, text, size, length)

  def noise_batches(
    self, tokenizer: Any, **settings: Any
  ) -> subject_batching.NoiseBatches:
    """Batches for the loss at fixed noise, see `NoiseBatches`."""
    return subject_batching.noise_batches(self, tokenizer, **settings)

  @property
  def _no_text(self) -> str:
    return (
      f'task {self.name!r} teaches a model to draw a subject, and the model '
      'draws nothing: take a text-to-image model '
      '(configs/models/stable_diffusion.gin)'
    )

  @functools.cached_property
  def _class_rows(self) -> Sequence[sources.Row]:
    return [*_rows_of(self.class_images), *self._made_rows]

  @property
  def _made_rows(self) -> Sequence[sources.Row]:
    """The first of the generated pictures, as many as are needed."""
    count = self.missing_class_images()
    return _rows_of(self.made_images, count) if count else ()


def _rows_of(
  folder: str | None, limit: int | None = None
) -> Sequence[sources.Row]:
  """The pictures of a folder; none if it is missing or empty."""
  if is_bucket(folder) and not as_path(folder, 'a folder').exists():
    return ()
  path = local_copy(folder or '')
  if folder is None or not path.exists():
    return ()
  if path.is_dir() and not any(path.iterdir()):
    return ()
  return sources.ImageFolder(folder, limit=limit)
