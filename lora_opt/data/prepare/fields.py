"""Reads fields of raw rows and checks their types.

Only text that is plainly a number is converted, by `whole` and `number`.
"""

import re
from collections.abc import Mapping
from typing import Any

from lora_opt.reading import values
from lora_opt.reading.values import shown

Raw = Mapping[str, Any]
_WHOLE = re.compile(r'-?\d{1,18}', re.ASCII)
_NUMBER = re.compile(r'-?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})', re.ASCII)


def text(raw: Raw, name: str) -> str:
  """A field that is text.

  Raises:
    KeyError: there is no such field.
    ValueError: it is not text, or cannot be encoded as UTF-8.

  >>> text({'goal': 'Open a jar'}, 'goal')
  'Open a jar'
  """
  return values.text(raw[name], f'field {name!r}')


def texts(raw: Raw, name: str, *, one: bool = False) -> list[str]:
  """A field that is a list of texts; with `one`, also a single text.

  >>> texts({'output': 'red'}, 'output', one=True)
  ['red']
  """
  found = raw[name]
  found = [found] if one and isinstance(found, str) else found
  place = f'field {name!r}'
  return [values.text(item, place) for item in values.items(found, place)]


def whole(value: Any) -> int:
  """A whole number, or a text that is one; not a boolean, 1.9 or '1_0'.

  >>> whole('-3'), whole(3)
  (-3, 3)
  """
  if isinstance(value, str) and _WHOLE.fullmatch(value):
    return int(value)
  return values.integer(value, 'a label', -(10**18), 10**18)


def number(value: Any) -> float:
  """A finite number, or a text that is one.

  >>> number('3.80')
  3.8
  """
  if isinstance(value, str) and _NUMBER.fullmatch(value):
    return float(value)
  return values.number(value, 'a number')


def index(value: Any, count: int) -> int:
  """A whole number from 0 to `count` - 1."""
  found = whole(value)
  if not 0 <= found < count:
    raise ValueError(f'label {shown(value)} is none of 0 to {count - 1}')
  return found


def digits(value: float) -> str:
  """Writes a number in at most ten digits.

  >>> digits(43.0), digits(0.1 + 0.2)
  ('43', '0.3')
  """
  written = f'{value:.10g}'
  if 'e' in written:
    raise ValueError(f'{value} cannot be written in ten digits')
  return written
