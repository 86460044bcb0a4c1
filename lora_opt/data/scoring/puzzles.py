"""Number puzzles whose answer is a calculation."""

import re
from fractions import Fraction
from typing import Any

from lora_opt.data.scoring.arithmetic import Exact, compute

_WHOLE = re.compile(r'\b\d{1,40}\b')
_WRONG = 0.01
_OTHER_NUMBERS = 0.05


def countdown(answer: str, row: dict[str, Any]) -> float:
  """1 if the calculation gives the target, with each number used once."""
  value = _value(answer)
  if value is None:
    return _WRONG
  puzzle = row['metadata']
  if sorted(_numbers(answer)) != sorted(puzzle['numbers']):
    return _OTHER_NUMBERS
  # The tolerance is that of reasoning_gym.
  tolerance = Fraction(1, 10**6) + abs(puzzle['target']) / Fraction(10**5)
  right = abs(value - puzzle['target']) <= tolerance
  return 1.0 if right else _OTHER_NUMBERS


def puzzle24(answer: str, row: dict[str, Any]) -> float:
  """1 if the calculation gives 24 (rounded down) with four allowed numbers."""
  value = _value(answer)
  least, most = row['metadata']['difficulty']['value']
  used = _numbers(answer)
  right = value is not None and int(value) == 24
  fair = len(used) == 4 and all(least <= number <= most for number in used)
  return 1.0 if right and fair else _WRONG


def _value(answer: str) -> Fraction | None:
  try:
    return compute(answer, Exact())
  except (ArithmeticError, ValueError):
    return None


def _numbers(answer: str) -> list[int]:
  return [int(digits) for digits in _WHOLE.findall(answer)]
