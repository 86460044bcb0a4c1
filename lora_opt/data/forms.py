"""Forms: the kinds of batches that models take.

A model names its form in its attribute `batch_form`. A form is a few functions
of (task, tokenizer, ...). Each makes batches for one purpose, with the arrays
that the model takes: always `weights` (of the terms that the loss sums), and
`segment_ids` if rows are packed.
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
  """Raises ValueError in place of making batches that a form lacks."""
  raise ValueError(
    f'task {task.name!r} of kind {task.kind} does not go with this kind of '
    'model: encoders say labels and numbers, the others write text'
  )


class Form(NamedTuple):
  """The class of its examples, and a function for each kind of batches.

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
  # Two answers to a prompt, each in its own segment with a copy of the prompt.
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
  # One text or a pair of texts per segment, with a label or a number.
  'encoder': Form(
    LabelledTexts,
    text_batching.train_batches,
    text_batching.eval_batches,
    label_batches=text_batching.label_batches,
  ),
  # One image per row, with a label.
  'image': Form(
    LabelledImage,
    image_batching.train_batches,
    image_batching.eval_batches,
    label_batches=image_batching.label_batches,
  ),
  # One image per row, with a caption.
  'text_to_image': Form(
    CaptionedImage,
    subject_batching.train_batches,
    subject_batching.eval_batches,
  ),
}


def find(name: str) -> Form:
  """The form with this name.

  >>> find('decoder').prompt_batches.__name__
  'pad_prompts'

  Raises:
    ValueError: there is no such form.
  """
  if name not in FORMS:
    raise ValueError(f'form={name!r} must be one of {", ".join(FORMS)}')
  return FORMS[name]


def of_task(name: str, task: Any) -> Form:
  """The form of a task's batches, for a model whose own form is `name`.

  Raises:
    ValueError: there is no such form, or the tasks of a mixture need different
      forms.
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
  """A training batch without examples, for the shapes of its arrays.

  Args:
    name: The name of the form.
    length: Positions in a row; for images, height and width.
    batch_size: Number of rows.

  Raises:
    ValueError: There is no such form, or the length is invalid for it.

  >>> empty_batch('decoder', length=8, batch_size=2)['tokens'].shape
  (2, 8)
  """
  kind = find(name).example
  if min(kind.capacity(length)) < 1:
    raise ValueError(f'length={length} must be at least 1')
  row = kind.row([], length)
  return {key: np.stack([value] * batch_size) for key, value in row.items()}
