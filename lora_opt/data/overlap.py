"""Evaluation examples that also stand in the training split."""

import hashlib
from collections.abc import Iterable, Set

from lora_opt.data.examples import Example


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> list[int]:
  """Finds held-out examples whose question is one of training too.

  Prompts, and what an encoder reads instead, are compared without regard to
  case and white space; images by their files' bytes.

  Args:
    train: the training examples, of one task or of several.
    held_out: the evaluation examples.

  Returns:
    Which of `held_out`, by their place in it, ascending.

  >>> why, how = Example('Why?', 'So'), Example('How?', 'Thus')
  >>> overlap([why], [how, Example('why?', ''), why])
  [1, 2]
  """
  return repeated(questions(train), held_out)


def questions(examples: Iterable[Example]) -> Set[bytes]:
  """What tells the questions of examples apart: a digest of each."""
  return set(map(_question, examples))


def repeated(seen: Set[bytes], held_out: Iterable[Example]) -> list[int]:
  """The places of the examples whose question is among these."""
  return [
    place
    for place, example in enumerate(held_out)
    if _question(example) in seen
  ]


def _question(example: Example) -> bytes:
  if example.image is not None:
    return example.image.digest.encode()
  texts = (example.prompt, *example.texts)
  plain = [' '.join(text.casefold().split()) for text in texts]
  # Not the texts themselves: they may be more than the memory holds.
  return hashlib.blake2b(repr(plain).encode(), digest_size=16).digest()
