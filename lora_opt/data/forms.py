"""Forms: how a model wants its batches.

A model says it by its attribute `batch_form`. One form is a few functions of
(task, tokenizer, ...): each makes batches for one purpose, and gives the model
the arrays that it takes, always with `weights` (what the loss is summed over),
and where rows are packed `segment_ids`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from lora_opt.data import (
  batching,
  eval_batching,
  image_batching,
  seq2seq_batching,
  subject_batching,
  text_batching,
)
from lora_opt.data.image_batching import LabelledImage
from lora_opt.data.packing import Encoded, EncodedExample
from lora_opt.data.preference_batching import EncodedPreference
from lora_opt.data.seq2seq_batching import EncodedPair
from lora_opt.data.subject_batching import CaptionedImage
from lora_opt.data.text_batching import LabelledTexts


def refuse(task, tokenizer, *arguments, **settings) -> Iterable:
  """In the place of batches that a form does not have."""
  raise ValueError(
    f'task {task.name!r} of kind {task.kind} does not go with this kind of '
    'model: encoders say labels and numbers, the others write text'
  )


class Form(NamedTuple):
  """What an example is, and the kinds of batches as functions.

  The functions take (task, tokenizer, ...).
  """

  example: type[Encoded | LabelledImage | CaptionedImage]
  train_batches: Callable[..., Iterable]  # see batching.train_batches
  eval_batches: Callable[..., Iterable]  # see batching.eval_batches
  choice_batches: Callable[..., Iterable] = refuse  # eval_batching.pack_choices
  prompt_batches: Callable[..., Iterable] = refuse  # eval_batching.pad_prompts
  label_batches: Callable[..., Iterable] = refuse  # text_batching.label_batches


PAIRS = 'decoder_pairs'
FORMS = {
  # Prompt and completion in one row, several examples to a row.
  'decoder': Form(
    EncodedExample,
    batching.train_batches,
    batching.eval_batches,
    eval_batching.pack_choices,
    eval_batching.pad_prompts,
  ),
  # Two answers to a prompt, each with it in a segment of its own.
  PAIRS: Form(
    EncodedPreference,
    functools.partial(batching.train_batches, kind=EncodedPreference),
    refuse,
    eval_batching.pack_choices,
    eval_batching.pad_prompts,
  ),
  # Prompt on the encoder's side, completion on the decoder's.
  'encoder_decoder': Form(
    EncodedPair,
    functools.partial(batching.train_batches, kind=EncodedPair),
    functools.partial(batching.eval_batches, kind=EncodedPair),
    seq2seq_batching.pack_choices,
    seq2seq_batching.pad_prompts,
  ),
  # A text or a pair of texts to a segment, with a label or a number.
  'encoder': Form(
    LabelledTexts,
    text_batching.train_batches,
    text_batching.eval_batches,
    label_batches=text_batching.label_batches,
  ),
  # An image to a row, with a label.
  'image': Form(
    LabelledImage,
    image_batching.train_batches,
    image_batching.eval_batches,
    label_batches=image_batching.label_batches,
  ),
  # A picture to a row, with a caption.
  'text_to_image': Form(
    CaptionedImage,
    subject_batching.train_batches,
    subject_batching.eval_batches,
  ),
}


def find(name: str) -> Form:
  """The form of this name.

  >>> find('decoder').prompt_batches.__name__
  'pad_prompts'

  Raises:
    ValueError: there is none.
  """
  if name not in FORMS:
    raise ValueError(f'form={name!r} must be one of {", ".join(FORMS)}')
  return FORMS[name]


def of_task(name: str, task: Any) -> Form:
  """The form in which a model of this form takes the batches of a task.

  Raises:
    ValueError: there is none, or a mixture's tasks need different ones.
  """
  parts = getattr(task, 'tasks', (task,))
  compares = [part.kind == 'preference' for part in parts]
  if not any(compares):
    return find(name)
  if not all(compares):
    raise ValueError(
      f'mixture {task.name!r} has preferences and tasks of other kinds, which '
      'are not trained together'
    )
  if name != 'decoder':
    return find(name)._replace(train_batches=refuse, choice_batches=refuse)
  return find(PAIRS)


def empty_batch(
  name: str, *, length: Any, batch_size: int
) -> dict[str, np.ndarray]:
  """A batch for training without an example in it, to know its shapes.

  Args:
    name: The form.
    length: Positions in a row; height and width of an image.
    batch_size: Rows.

  Raises:
    ValueError: There is no such form, or it has no such length.

  >>> empty_batch('decoder', length=8, batch_size=2)['tokens'].shape
  (2, 8)
  """
  kind = find(name).example
  if min(kind.capacity(length)) < 1:
    raise ValueError(f'length={length} must be at least 1')
  row = kind.row([], length)
  return {key: np.stack([value] * batch_size) for key, value in row.items()}
