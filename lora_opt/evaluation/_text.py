"""Formats numbers and texts of the reports for human readers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
NONE = '\N{EN DASH}'


def number(value: Any) -> float | None:
  """The value if it is a finite number, else None."""
  plain = isinstance(value, (int, float)) and not isinstance(value, bool)
  return value if plain and math.isfinite(value) else None


def first(name: str, *sources: Json) -> Any:
  """The first truthy value under this name in the sources, else None."""
  return next((s[name] for s in sources if s.get(name)), None)


def show(value: float | None, form: str = '{:,.0f}') -> str:
  """The formatted value, or a dash if it is None."""
  return NONE if value is None else minus(form.format(value))


def minus(text: str) -> str:
  """Writes a number with minus signs in place of hyphens."""
  return text.replace('-', '\N{MINUS SIGN}')


def label(name: str) -> str:
  """A metric's name in words.

  >>> label('timing/tokens_per_second')
  'Tokens per second'
  """
  words = name.rpartition('/')[2].replace('grad_', 'gradient_')
  return words.replace('_', ' ').capitalize()


def brief(value: float) -> str:
  """A number short enough for an axis.

  >>> [brief(x) for x in (0, 0.25, 1500, 12_000, 2.5e6, 2e-5)]
  ['0', '0.25', '1500', '12k', '2.5M', '2e−5']
  """
  size = abs(value)
  for smallest, unit, letter in (
    (1e9, 1e9, 'G'),
    (1e6, 1e6, 'M'),
    (1e4, 1e3, 'k'),
  ):
    if size >= smallest:
      return minus(f'{value / unit:.4g}{letter}')
  if size >= 1e-3 or size == 0:
    return minus(f'{value:.4g}')
  mantissa, exponent = f'{value:.1e}'.split('e')
  return minus(f'{float(mantissa):g}e{int(exponent)}')


def duration(seconds: float | None) -> str:
  """Seconds in words.

  >>> duration(921.4), duration(7384), duration(3.2)
  ('15 min 21 s', '2 h 3 min', '3.2 s')
  """
  if seconds is None:
    return NONE
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {rest} s' if minutes else f'{seconds:.1f} s'


def shorten(text: str, length: int = 1500) -> str:
  """The text, or its beginning and the number of characters left out."""
  if len(text) <= length:
    return text
  return f'{text[:length]} … ({len(text) - length:,} more characters)'


def aligned(table: Sequence[Sequence[str]]) -> str:
  """Formats rows of cells as lines: first column left-aligned, others right.

  >>> print(aligned([('', 'Score'), ('mean', '5')]))
        Score
  mean      5
  """
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = []
  for name, *cells in table:
    line = [name.ljust(widths[0])]
    for cell, width in zip(cells, widths[1:], strict=True):
      line.append(cell.rjust(width))
    lines.append('  '.join(line).rstrip())
  return '\n'.join(lines)
