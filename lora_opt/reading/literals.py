"""Reads Python literals without Python's own parser.

`ast.literal_eval` builds a syntax tree of any input, so the author of the input
controls memory, depth and time. Here they are bounded.
"""

import math
import re
from typing import Any

LONGEST = 10_000
DEPTH = 8
_DIGITS = 300
_TOKEN = re.compile(
  r"""(?P<space>[ \t\f\r\n]*)(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)(?![\w.])
    | (?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    | (?P<name>None|True|False)\b
    | (?P<sign>[\[\](),])
  )""",
  re.VERBOSE | re.ASCII,
)
_NAMES = {'None': None, 'True': True, 'False': False}
_ESCAPED = {r'\n': '\n', r'\t': '\t', r'\\': '\\', r'\'': "'", r'\"': '"'}
_CLOSES = {'[': ']', '(': ')'}


def read_literal(text: str) -> Any:
  r"""Reads a number, string, boolean, None, or lists and tuples of these.

  Args:
    text: At most 10,000 characters. As in Python, values separated by commas
      are a tuple, even without brackets.

  Raises:
    ValueError: It is anything else, or nested more than 8 levels deep.

  >>> read_literal("[['Q', '_'], (1, -2.5)]")
  [['Q', '_'], (1, -2.5)]
  >>> read_literal("__import__('os').system('ls')")
  Traceback (most recent call last):
  ...
  ValueError: no number, text or list at position 0
  """
  if len(text) > LONGEST:
    raise ValueError(f'{len(text):,} characters, at most {LONGEST:,} are read')
  text = text.strip()
  value, _, commas = _values(text, 0, None, DEPTH)
  return tuple(value) if commas else value[0]


def _values(
  text: str, place: int, close: str | None, depth: int
) -> tuple[list[Any], int, bool]:
  """The values up to `close`, where it ends, and whether there were commas."""
  if not depth:
    raise ValueError(f'nested more than {DEPTH} deep')
  values: list[Any] = []
  commas, wanted = False, True
  while True:
    if close is None and place == len(text) and values:
      return values, place, commas
    found = _TOKEN.match(text, place)
    if not found:
      raise ValueError(f'no number, text or list at position {place}')
    if close is None and re.search('[\r\n]', found['space']):
      raise ValueError(f'a line ends outside of brackets at {place}')
    place, sign = found.end(), found['sign']
    if sign and sign == close:
      return values, place, commas
    if sign == ',' and not wanted:
      commas, wanted = True, True
    elif wanted and sign in _CLOSES:
      inner, place, several = _values(text, place, _CLOSES[sign], depth - 1)
      grouped = sign == '(' and len(inner) == 1 and not several
      as_it_is = inner[0] if grouped else tuple(inner)
      values.append(inner if sign == '[' else as_it_is)
      wanted = False
    elif wanted and not sign:
      values.append(_value(found))
      wanted = False
    else:
      raise ValueError(f'unexpected {sign or "value"} before {place}')


def _value(found: re.Match) -> Any:
  if found['name']:
    return _NAMES[found['name']]
  if found['text']:
    return re.sub(r'\\.', _unescaped, found['text'][1:-1])
  number = found['number']
  if len(number) > _DIGITS:
    raise ValueError(f'a number of {len(number)} characters')
  whole = number.lstrip('+-')
  if not whole.isdecimal():
    if not math.isfinite(value := float(number)):
      raise ValueError(f'{number} is too large')
    return value
  if whole[0] == '0' and whole.strip('0'):
    raise ValueError(f'{number} begins with 0')
  return int(number)


def _unescaped(found: re.Match) -> str:
  if found[0] not in _ESCAPED:
    raise ValueError(f'unknown escape {found[0]}')
  return _ESCAPED[found[0]]
