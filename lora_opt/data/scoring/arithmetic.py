"""Computes arithmetic that a model wrote, while it parses it.

The operators are Python's: + - * / ** and brackets. An `Algebra` defines the
numbers and the operations on them; nothing else is ever called.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Generic, TypeVar

Value = TypeVar('Value')

LONGEST = 2000
DEPTH = 30
BITS = 4096
_TOKEN = re.compile(
  r'[ \t]*(?:((?!0\d)\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?![\w.])'
  r'|([A-Za-z_]\w{0,40})|(\*[ \t]*\*|[-+*/()]))',
  re.ASCII,
)
_END = ''


class Algebra(Generic[Value]):
  """Numbers and operations on them; any method may raise ArithmeticError.

  ArithmeticError means that a result cannot be computed, such as 1/0, or would
  be too large.
  """

  def number(self, value: Fraction, decimal: bool) -> Value:
    """The value of a number; `decimal` says if it was written with a point."""
    raise ArithmeticError(f'the number {value}')

  def name(self, name: str) -> Value:
    """The value of a variable or a constant."""
    raise ArithmeticError(f'the name {name}')

  def call(self, function: str, value: Value) -> Value:
    """The result of a function of one value."""
    raise ArithmeticError(f'the function {function}')

  def negative(self, a: Value) -> Value:
    return -a

  def add(self, a: Value, b: Value) -> Value:
    return a + b

  def multiply(self, a: Value, b: Value) -> Value:
    return a * b

  def divide(self, a: Value, b: Value) -> Value:
    return a / b

  def power(self, a: Value, b: Value) -> Value:
    return a**b


class Exact(Algebra[Fraction]):
  """Fractions of bounded size, without names."""

  def number(self, value, decimal):
    return value

  def add(self, a, b):
    return _bounded(a + b)

  def multiply(self, a, b):
    return _bounded(a * b)

  def divide(self, a, b):
    return _bounded(a / b)

  def power(self, a, b):
    if b.denominator != 1 or _bits(a) * abs(b) > BITS:
      raise ArithmeticError('an exponent that is too large, or broken')
    return a ** int(b)


def compute(text: str, algebra: Algebra[Value]) -> Value:
  """Computes an expression.

  Args:
    text: At most 2000 characters, with brackets at most 30 deep.
    algebra: The numbers and operations to compute it with.

  Raises:
    ValueError: The text is not such an expression.
    ArithmeticError: The expression has no value.

  >>> compute('2 * (3 - 1/2) ** 2', Exact())
  Fraction(25, 2)
  """
  if len(text) > LONGEST:
    raise ValueError(f'{len(text):,} characters, at most {LONGEST:,} are read')
  reader = _Reader(text, algebra)
  value = reader.sum(DEPTH)
  if reader.token != _END:
    raise ValueError(f'unexpected {reader.token!r}')
  return value


class _Reader(Generic[Value]):
  """Parses by precedence and computes on the way, without a syntax tree."""

  def __init__(self, text: str, algebra: Algebra[Value]):
    self._tokens = _tokens(text)
    self._algebra = algebra
    self._advance()

  def _advance(self) -> None:
    self.token, self._kind = next(self._tokens)

  def _take(self) -> str:
    token = self.token
    self._advance()
    return token

  def sum(self, depth: int) -> Value:
    value = self._product(depth)
    while self.token in ('+', '-'):
      minus = self._take() == '-'
      other = self._product(depth)
      other = self._algebra.negative(other) if minus else other
      value = self._algebra.add(value, other)
    return value

  def _product(self, depth: int) -> Value:
    value = self._signed(depth)
    while self.token in ('*', '/'):
      division = self._take() == '/'
      act = self._algebra.divide if division else self._algebra.multiply
      value = act(value, self._signed(depth))
    return value

  def _signed(self, depth: int) -> Value:
    minus = False
    while self.token in ('+', '-'):
      minus ^= self._take() == '-'
    value = self._power(depth)
    return self._algebra.negative(value) if minus else value

  def _power(self, depth: int) -> Value:
    if not depth:
      raise ValueError(f'nested more than {DEPTH} deep')
    value = self._atom(depth)
    if self.token == '**':
      self._advance()
      value = self._algebra.power(value, self._signed(depth - 1))
    return value

  def _atom(self, depth: int) -> Value:
    kind, token = self._kind, self._take()
    if kind == 'number':
      return self._algebra.number(Fraction(token), '.' in token)
    if kind == 'name' and self.token != '(':
      return self._algebra.name(token)
    if kind == 'name':
      self._advance()
    elif token != '(':
      raise ValueError(f'unexpected {token or "end"!r}')
    value = self.sum(depth - 1)
    if self._take() != ')':
      raise ValueError('a bracket that is not closed')
    return self._algebra.call(token, value) if kind == 'name' else value


def _tokens(text: str) -> Iterator[tuple[str, str]]:
  text = text.strip()
  place = 0
  while place < len(text):
    found = _TOKEN.match(text, place)
    if not found:
      raise ValueError(f'no arithmetic at position {place}')
    place = found.end()
    number, name, sign = found.groups()
    kind = 'number' if number else 'name' if name else 'sign'
    yield number or name or re.sub(r'\s', '', sign), kind
  while True:
    yield _END, 'end'


def _bounded(value: Fraction) -> Fraction:
  if _bits(value) > BITS:
    raise ArithmeticError('a number that is too large')
  return value


def _bits(value: Fraction) -> int:
  return max(value.numerator.bit_length(), value.denominator.bit_length())
