"""Checks antiderivatives by differentiating them at a few points.

Two analytic functions that agree to nearly all digits, at points in general
position, are the same. The points are complex, so that roots and logarithms
have values everywhere. They lie on both sides of every usual branch cut, so a
wrong branch is noticed. Derivatives are computed along with the values (dual
numbers). There is no symbolic algebra, and the cost is that of parsing the
answer a few times.
"""

import cmath
import zlib
from typing import Any, NamedTuple

from lora_opt.data.scoring.arithmetic import Algebra, compute

_POINTS = (
  *(0.31 + 0.22j, -0.57 + 0.34j, 0.83 - 0.41j, -0.29 - 0.63j),
  *(1.37 + 0.18j, -1.21 - 0.27j, 0.12 + 1.09j, 0.46 - 0.92j),
)
_ENOUGH = 5  # points at which both must have values
_TOLERANCE = 1e-9
_CONSTANTS = {'pi': cmath.pi, 'E': cmath.e, 'I': 1j}


class Dual(NamedTuple):
  """A value and its derivative."""

  value: complex
  slope: complex


def _reciprocal_root(x: complex) -> complex:
  return 1 / cmath.sqrt(1 - x * x)


# The value and the derivative of each function.
_FUNCTIONS = {
  'sqrt': (cmath.sqrt, lambda x: 0.5 / cmath.sqrt(x)),
  'exp': (cmath.exp, cmath.exp),
  'log': (cmath.log, lambda x: 1 / x),
  'ln': (cmath.log, lambda x: 1 / x),
  'sin': (cmath.sin, cmath.cos),
  'cos': (cmath.cos, lambda x: -cmath.sin(x)),
  'tan': (cmath.tan, lambda x: 1 / cmath.cos(x) ** 2),
  'sec': (lambda x: 1 / cmath.cos(x), lambda x: cmath.tan(x) / cmath.cos(x)),
  'csc': (
    lambda x: 1 / cmath.sin(x),
    lambda x: -cmath.cos(x) / cmath.sin(x) ** 2,
  ),
  'cot': (lambda x: 1 / cmath.tan(x), lambda x: -1 / cmath.sin(x) ** 2),
  'asin': (cmath.asin, _reciprocal_root),
  'acos': (cmath.acos, lambda x: -_reciprocal_root(x)),
  'atan': (cmath.atan, lambda x: 1 / (1 + x * x)),
  'sinh': (cmath.sinh, cmath.cosh),
  'cosh': (cmath.cosh, cmath.sinh),
  'tanh': (cmath.tanh, lambda x: 1 / cmath.cosh(x) ** 2),
}


class _AtPoint(Algebra[Dual]):
  """Dual numbers with one variable, at a point; other names are constants."""

  def __init__(self, variable: str, point: complex):
    self._variable, self._point = variable, point

  def number(self, value, decimal):
    return Dual(complex(float(value)), 0)

  def name(self, name):
    if name == self._variable:
      return Dual(self._point, 1)
    if name in _CONSTANTS:
      return Dual(_CONSTANTS[name], 0)
    # A constant such as C: some number, the same wherever the name occurs.
    return Dual(1 + zlib.crc32(name.encode()) / 2**32, 0)

  def call(self, function, value):
    if function not in _FUNCTIONS:
      raise ValueError(f'the function {function} is not known')
    of, slope = _FUNCTIONS[function]
    try:
      return Dual(of(value.value), slope(value.value) * value.slope)
    except ValueError as error:  # for example in log(0)
      raise ArithmeticError(f'{function} has no value') from error

  def negative(self, a):
    return Dual(-a.value, -a.slope)

  def add(self, a, b):
    return Dual(a.value + b.value, a.slope + b.slope)

  def multiply(self, a, b):
    return Dual(a.value * b.value, a.slope * b.value + a.value * b.slope)

  def divide(self, a, b):
    value = a.value / b.value
    return Dual(value, (a.slope - value * b.slope) / b.value)

  def power(self, a, b):
    value = a.value**b.value
    slope = b.value * a.value ** (b.value - 1) * a.slope if b.value else 0
    if b.slope:
      if not a.value:
        raise ArithmeticError('a power of 0 that changes')
      slope += value * cmath.log(a.value) * b.slope
    return Dual(value, slope)


def integration(answer: str, row: dict[str, Any]) -> float:
  """1 if the answer's derivative is the integrand."""
  variable = row['metadata']['variable']
  agreeing = 0
  for point in _POINTS:
    algebra = _AtPoint(variable, point)
    try:
      wanted = compute(row['metadata']['integrand'], algebra).value
      found = compute(answer, algebra).slope
    except ArithmeticError:  # no value there: a pole, or too large
      continue
    except ValueError:  # not a valid expression
      return 0.0
    if not (cmath.isfinite(found) and cmath.isfinite(wanted)):
      continue
    if abs(found - wanted) > _TOLERANCE * (1 + abs(wanted)):
      return 0.0
    agreeing += 1
  return float(agreeing >= _ENOUGH)
