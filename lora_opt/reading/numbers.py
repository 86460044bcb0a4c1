r"""Reads numbers as people and models write them, the same way everywhere.

Examples of texts, and the values that are read:

  5  +5  1.50  .75  5.        5, 5, 1.5, 0.75, and 5 at a sentence's end
  -5  −5  –5  = - 5           −5, whichever dash it is
  3-5  x-5  50%-60%           5, 5, 60: after these a dash is not a sign
  1,036  1_036  1,00,000      1036, 1036, 100000; also groups separated by
                              no-break or thin spaces
  1.000.000  1.000,50         1000000, 1000.5: dots that cannot be decimal
                              points
  1,2,3                       three numbers
  $5  -$5  $-5  5 €  50%      5, −5, −5, 5, 50: units are dropped
  1e3  1.5×10^3               1000, 1500
  1/2  \frac{1}{2}  1 1/2     0.5, 0.5, 1.5; also ½, 1⁄2 and 1½
  1/2/2024  1.2.3             three numbers; no number
  １２  ٣                      12, 3: the decimal digits of all scripts

'nan', 'inf', words, and numbers of more than 300 digits are not read.
"""

import collections
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

# The last number of a longer text is searched for in this many last characters.
LONGEST = 20_000
DIGITS = 300
_TOO_LARGE = 10**DIGITS
_DASHES = '-\u2212\u2010\u2011\u2013\uff0d\ufe63'
_CURRENCIES = '$€£¥₹\uff04'
_BEFORE_NO_SIGN = ')]}%' + _DASHES + _CURRENCIES
# Full-width signs, other fraction slashes, and no-break and thin spaces.
_PLAIN = str.maketrans(
  '\uff0e\uff0c\uff0b\uff05\uff0f\u2044\u2215\u00a0\u2009',
  '.,+%///\u202f\u202f',
)
# Fractions that are one character: quarters, halves, and thirds to tenths.
_LETTER = re.compile(r'(\d?)([\xbc-\xbe\u2150-\u215e])(?=(\d?))')
# After these, a dash and a space are a sign, not a bullet.
_SIGN_APART = re.compile(rf'[=({{]\s?[{_DASHES}]\s$')
_START = re.compile(
  r'\\[dt]?frac\s?\{(?P<top>\d{1,300})\}\s?\{(?P<bottom>\d{1,300})\}'
  r'|\.?\d[\d.,_\u202f]*'
)
_SHAPES = tuple(
  re.compile(shape)
  for shape in (
    r'(\d+)(?:\.(\d+))?',
    r'(\d{1,3}(?:,\d{3})+)(?:\.(\d+))?',
    r'(\d{1,3}(?:_\d{3})+)(?:\.(\d+))?',
    r'(\d{1,3}(?:\u202f\d{3})+)(?:\.(\d+))?',
    r'(\d{1,2}(?:,\d{2})+,\d{3})(?:\.(\d+))?',  # lakhs and crores
    r'(\d{1,3}(?:\.\d{3}){2,})()',
    r'(\d{1,3}(?:\.\d{3})+),(\d{1,2})',
    r'()\.(\d+)',
  )
)
_POWER = re.compile(
  rf'(?:[eE]|\s?(?:[x\xd7\xb7*]|\\times|\\cdot)\s?10(?:\^|\*\*)\{{?)'
  rf'(?P<sign>[{_DASHES}+]?)(?P<digits>\d{{1,3}})(?!\w)\}}?'
)
_OVER = re.compile(r'\s?/\s?(\d{1,300})(?![\d/]|[.,]\d)')
_MIXED = re.compile(r'\s(\d{1,300})\s?/\s?(\d{1,300})(?![\d/]|[.,]\d)')
_NONE = (1, 0, None)
_UNIT = re.compile(rf'\s?(?:\\?[%{_CURRENCIES}])?\.?')


def last_number(text: str) -> Fraction | None:
  """The last number in a text, or None if it contains no number.

  >>> last_number('That makes 3 + 4 = 7.50 apples.')
  Fraction(15, 2)
  """
  found = collections.deque(numbers(text[-LONGEST:]), maxlen=1)
  return found[0] if found else None


def read_number(text: str) -> Fraction | None:
  """The number that a text consists of, or None if it is anything else.

  >>> read_number(' $1,036.00 '), read_number('about 7'), read_number('nan')
  (Fraction(1036, 1), None, None)
  """
  if len(text) > 4 * DIGITS:
    return None
  text = _plain(text).strip()
  start, end, number = next(_numbers(text), _NONE)
  return number if start == 0 and _UNIT.fullmatch(text, end) else None


def leading_number(text: str) -> Fraction | None:
  """The number that a text begins with, or None if there is no such number.

  >>> leading_number('$18. It was 20'), leading_number('it was 20')
  (Fraction(18, 1), None)
  """
  start, _, number = next(_numbers(_plain(text[: 4 * DIGITS])), _NONE)
  return None if start else number


def numbers(text: str) -> Iterator[Fraction]:
  """All numbers in a text, in order.

  >>> [str(number) for number in numbers('2-3 of 1,2 and −$.5')]
  ['2', '3', '1', '2', '-1/2']
  """
  return (number for _, _, number in _numbers(_plain(text)))


def spelled(number: Fraction) -> str:
  """The canonical spelling of a number, so that texts can be compared.

  >>> spelled(Fraction(3, 2)), spelled(Fraction(-7)), spelled(Fraction(1, 3))
  ('1.5', '-7', '1/3')
  """
  top, bottom = abs(number.numerator), number.denominator
  sign = '-' if number < 0 else ''
  twos, fives = _times(bottom, 2), _times(bottom, 5)
  if 2**twos * 5**fives != bottom:
    return f'{sign}{top}/{bottom}'
  places = max(twos, fives)
  digits = str(top * 10**places // bottom).zfill(places + 1)
  cut = len(digits) - places
  return sign + digits[:cut] + ('.' + digits[cut:] if places else '')


def _plain(text: str) -> str:
  """Unifies variants of signs and spaces, and spells out fractions like ½."""
  return _LETTER.sub(_spelled_out, text).translate(_PLAIN)


def _spelled_out(found: re.Match) -> str:
  before, letter, after = found.groups()
  fraction = unicodedata.normalize('NFKC', letter)
  return before + ' ' * bool(before) + fraction + ' ' * bool(after)


def _times(number: int, factor: int) -> int:
  """How many times a number can be divided by a factor."""
  count = 0
  while number % factor == 0:
    number, count = number // factor, count + 1
  return count


def _numbers(text: str) -> Iterator[tuple[int, int, Fraction]]:
  """Start, end and value of each number, including its sign."""
  place = 0
  while found := _START.search(text, place):
    place = found.end()
    if found['top']:
      parts = [(found.start(), place, _ratio(found['top'], found['bottom']))]
    else:
      parts = _parts(text, *found.span())
      start, end, value = parts[-1]
      if value is not None:
        place, value = _with_tail(text, start, end, value)
        parts[-1] = start, place, value
    for start, end, value in parts:
      if value is not None and abs(value) < _TOO_LARGE:
        start, sign = _sign(text, start)
        yield start, end, sign * value


def _parts(
  text: str, start: int, end: int
) -> list[tuple[int, int, Fraction | None]]:
  """The numbers in a run of digits, dots and commas: one, or a list."""
  before = text[start - 1 : start]
  if text[start] == '.' and (before.isalnum() or before == '.'):
    start += 1
  run = text[start:end].rstrip('.,_\u202f')
  value = _value(run)
  parts = []
  for part in [run] if value is not None else run.split(','):
    parts.append((start, start + len(part), _value(part)))
    start += len(part) + 1
  return parts


def _value(run: str) -> Fraction | None:
  if len(run) > DIGITS:
    return None
  for shape in _SHAPES:
    if found := shape.fullmatch(run):
      whole = re.sub(r'\D', '', found[1])
      decimals = found[2] or ''
      return Fraction(int(whole + decimals), 10 ** len(decimals))
  return None


def _with_tail(
  text: str, start: int, end: int, value: Fraction
) -> tuple[int, Fraction | None]:
  """The end of a number and its value, including a power of ten or fraction."""
  if found := _POWER.match(text, end):
    power = int(found['digits'])
    if power > DIGITS:
      return found.end(), None
    down = found['sign'] in _DASHES if found['sign'] else False
    scale = Fraction(10) ** (-power if down else power)
    return found.end(), value * scale
  if not text[start:end].isdecimal() or text[start - 1 : start] == '/':
    return end, value
  if found := _OVER.match(text, end):
    return found.end(), _ratio(text[start:end], found[1])
  found = _MIXED.match(text, end)
  if found and int(found[1]) < int(found[2]):
    return found.end(), value + _ratio(found[1], found[2])
  return end, value


def _ratio(top: str, bottom: str) -> Fraction | None:
  return Fraction(int(top), int(bottom)) if int(bottom) else None


def _sign(text: str, start: int) -> tuple[int, int]:
  """The start of a number with its sign and currency; and its sign, 1 or -1."""
  place, sign = start, ''
  if text[place - 1 : place] in tuple(_DASHES + '+'):
    place, sign = place - 1, text[place - 1]
  elif _SIGN_APART.search(text[max(0, place - 4) : place]):
    return place - 2, -1
  if text[place - 1 : place] in tuple(_CURRENCIES):
    place -= 1
    place -= text[place - 1 : place] == '\\'
    if not sign and text[place - 1 : place] in tuple(_DASHES + '+'):
      place, sign = place - 1, text[place - 1]
  before = text[place - 1 : place] if sign else ''
  if before and (before.isalnum() or before in _BEFORE_NO_SIGN):
    return start, 1
  return place, -1 if sign and sign in _DASHES else 1
