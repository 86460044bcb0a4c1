"""Checks conclusions in propositional logic by their truth tables."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Truth = Callable[[Mapping[str, bool]], bool]

LONGEST = 500
_DEPTH = 30
_VARIABLES = 14  # that is 16,384 rows of a truth table
_PARSED = 0.05  # for a formula that does not follow from the premises
_TRIVIAL = 0.25
_NOT = '¬'
# From the loosest binding to the tightest. For each, a text is split at its
# last occurrence first.
_OPERATORS: tuple[tuple[str, Callable[[bool, bool], bool]], ...] = (
  ('↔', lambda a, b: a == b),
  ('→', lambda a, b: not a or b),
  ('\N{LOGICAL OR}', lambda a, b: a or b),
  ('∧', lambda a, b: a and b),
)


def conclusion(answer: str, row: dict[str, Any]) -> float:
  """1 if the answer follows from the premises and is not trivial."""
  puzzle = row['metadata']
  variables = puzzle['variables']
  if set(re.findall('[A-Z]', answer)) - set(variables):
    return 0.0
  if len(answer) > LONGEST:
    return 0.0
  try:
    names: set[str] = set()
    found = _read(answer, names, _DEPTH)
  except ValueError:
    return 0.0
  alone = _without_brackets(answer) in names
  premises = [_read(text, names, len(text)) for text in puzzle['premises']]
  if len(names) > max(_VARIABLES, len(variables)):
    return _PARSED
  rows = list(_assignments(sorted(names)))
  if not all(found(row) for row in rows if all(p(row) for p in premises)):
    return _PARSED
  return _TRIVIAL if alone or all(map(found, rows)) else 1.0


def _assignments(names: Sequence[str]):
  for values in itertools.product((False, True), repeat=len(names)):
    yield dict(zip(names, values, strict=True))


def _read(text: str, names: set[str], depth: int) -> Truth:
  """Parses a formula into a function, and adds its variables to `names`."""
  text = _without_brackets(text)
  if not text or not depth:
    raise ValueError('empty, or nested too deep')
  levels = _levels(text)
  for sign, act in _OPERATORS:
    for place in range(len(text) - 1, -1, -1):
      if levels[place] == 0 and text[place] == sign:
        left = _read(text[:place], names, depth - 1)
        right = _read(text[place + 1 :], names, depth - 1)
        return lambda row: act(left(row), right(row))
  if text[0] == _NOT:
    inner = _read(text[1:], names, depth - 1)
    return lambda row: not inner(row)
  names.add(text)
  return lambda row: row[text]


def _levels(text: str) -> list[int]:
  """How many brackets are open at each character, counted from the end."""
  steps = ((c == ')') - (c == '(') for c in reversed(text))
  return list(itertools.accumulate(steps))[::-1]


def _without_brackets(text: str) -> str:
  """The text without brackets that enclose all of it."""
  text = text.strip()
  while text[:1] == '(' and text[-1:] == ')':
    levels = _levels(text)
    if levels[0] or not all(level > 0 for level in levels[1:]):
      break
    text = text[1:-1].strip()
  return text
