"""Forms: how a model wants its batches.

A model says it by its attribute `batch_form`. One form is a few functions of
(task, tokenizer, ...): each makes batches for one purpose, and gives the model
the arrays that it takes, always with `weights` (what the loss is summed over)
and `segment_ids`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lora_opt.data import (
  batching,
  eval_batching,
  seq2seq_batching,
  text_batching,
)
from lora_opt.data.seq2seq_batching import EncodedPair


def refuse(task, tokenizer, *arguments, **settings) -> Iterable:
  """In the place of batches that a form does not have."""
  raise ValueError(
    f'task {task.name!r} of kind {task.kind} does not go with this kind of '
    'model: encoders say labels and numbers, the others write text'
  )


class Form(NamedTuple):
  """The kinds of batches, as functions of (task, tokenizer, ...)."""

  train_batches: Callable[..., Iterable]  # see batching.train_batches
  eval_batches: Callable[..., Iterable]  # see batching.eval_batches
  choice_batches: Callable[..., Iterable] = refuse  # eval_batching.pack_choices
  prompt_batches: Callable[..., Iterable] = refuse  # eval_batching.pad_prompts
  label_batches: Callable[..., Iterable] = refuse  # text_batching.label_batches


FORMS = {
  # Prompt and completion in one row, several examples to a row.
  'decoder': Form(
    batching.train_batches,
    batching.eval_batches,
    eval_batching.pack_choices,
    eval_batching.pad_prompts,
  ),
  # Prompt on the encoder's side, completion on the decoder's.
  'encoder_decoder': Form(
    functools.partial(batching.train_batches, kind=EncodedPair),
    functools.partial(batching.eval_batches, kind=EncodedPair),
    seq2seq_batching.pack_choices,
    seq2seq_batching.pad_prompts,
  ),
  # A text or a pair of texts to a segment, with a label or a number.
  'encoder': Form(
    text_batching.train_batches,
    text_batching.eval_batches,
    label_batches=text_batching.label_batches,
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
