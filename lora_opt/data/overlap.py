"""Evaluation examples that also stand in the training split."""

from collections.abc import Iterable

from lora_opt.data.examples import Example


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> list[int]:
  """Finds held-out examples whose prompt is a training prompt too.

  Prompts are compared without regard to case and white space.

  Args:
    train: the training examples, of one task or of several.
    held_out: the evaluation examples.

  Returns:
    Which of `held_out`, by their place in it, ascending.

  >>> why, how = Example('Why?', 'So'), Example('How?', 'Thus')
  >>> overlap([why], [how, Example('why?', ''), why])
  [1, 2]
  """
  seen = {_normalised(example.prompt) for example in train}
  return [
    place
    for place, example in enumerate(held_out)
    if _normalised(example.prompt) in seen
  ]


def _normalised(text: str) -> str:
  return ' '.join(text.casefold().split())
