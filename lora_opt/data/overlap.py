"""Evaluation examples that also stand in the training split."""

from collections.abc import Iterable

from lora_opt.data.examples import Example


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> list[int]:
  """Finds held-out examples whose question is one of training too.

  Prompts, and what an encoder reads instead, are compared without regard to
  case and white space.

  Args:
    train: the training examples, of one task or of several.
    held_out: the evaluation examples.

  Returns:
    Which of `held_out`, by their place in it, ascending.

  >>> why, how = Example('Why?', 'So'), Example('How?', 'Thus')
  >>> overlap([why], [how, Example('why?', ''), why])
  [1, 2]
  """
  seen = set(map(_question, train))
  return [
    place
    for place, example in enumerate(held_out)
    if _question(example) in seen
  ]


def _question(example: Example) -> tuple[str, ...]:
  texts = (example.prompt, *example.texts)
  return tuple(' '.join(text.casefold().split()) for text in texts)
