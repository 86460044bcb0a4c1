"""Finds evaluation examples that also occur in the training split."""

import hashlib
from collections.abc import Iterable, Set

from lora_opt.data.examples import Example


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> list[int]:
  """Finds held-out examples whose question also occurs in training.

  Prompts, and the texts that an encoder reads instead, are compared ignoring
  case and differences in white space. Images are compared by the bytes of their
  files.

  Args:
    train: the training examples, of one task or of several.
    held_out: the evaluation examples.

  Returns:
    Their indices in `held_out`, in ascending order.

  >>> why, how = Example('Why?', 'So'), Example('How?', 'Thus')
  >>> overlap([why], [how, Example('why?', ''), why])
  [1, 2]
  """
  return repeated(questions(train), held_out)


def questions(examples: Iterable[Example]) -> Set[bytes]:
  """The digests of the examples' questions."""
  return set(map(_question, examples))


def repeated(seen: Set[bytes], held_out: Iterable[Example]) -> list[int]:
  """The indices of the examples whose question's digest is in `seen`."""
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
  # A digest, since the texts themselves may not all fit into memory.
  return hashlib.blake2b(repr(plain).encode(), digest_size=16).digest()
