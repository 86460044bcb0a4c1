"""Checks that numbers are finite before they become scores.

Comparisons with NaN do not fail, although NaN is neither less nor greater than
any number: `argmax` takes the first NaN for the best of all.
"""

from typing import Any

import numpy as np

from lora_opt.reading.values import shown

WEIGHTS = (
  'The weights of the model or of its adapter hold NaN or infinity, or what is '
  'computed with them leaves the range of its type. Evaluate without the '
  "adapter (ADAPTER = 'none') to see which of them it is: an adapter that "
  'training has spoiled comes back with an earlier checkpoint (ADAPTER = '
  "'MODEL_DIR/checkpoints/step_...'), a damaged model when it is fetched again"
)


def require_finite(
  value: Any, what: str, example: str, advice: str = WEIGHTS
) -> None:
  """Raises ValueError unless all numbers are finite.

  Args:
    value: A number or an array.
    what: The name of the value, for the message.
    example: The example it belongs to, for the message.
    advice: What to do about it; by default for numbers that a model computed.

  >>> require_finite([0.5, 1.0], 'the loss', 'example 3')
  """
  value = np.asarray(value, np.float64)
  if not np.all(np.isfinite(value)):
    bad = value[~np.isfinite(value)].flat[0]
    raise not_finite(f'{what} is {bad}', example, advice)


def not_finite(what: str, example: str, advice: str = WEIGHTS) -> ValueError:
  """Makes the error to raise for something that is not finite."""
  return ValueError(
    f'{example}: {what}, which is not a number to score. {advice}'
  )


def named(place: str, prompt: str) -> str:
  """Describes an example in a message.

  >>> named('sky, example 3', 'Why?')
  "sky, example 3 ('Why?')"
  """
  return f'{place} ({shown(prompt, 60)})'
