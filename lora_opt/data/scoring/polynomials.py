"""Compares polynomials that were multiplied out, term by term.

An answer that still contains a product of sums scores 0: the question is such a
product, and copying it is not an answer. A number before a sum is multiplied
into it.
"""

from fractions import Fraction
from typing import Any

from lora_opt.data.scoring.arithmetic import Algebra, Exact, compute

# The coefficient of each monomial; a monomial is the sorted pairs of name and
# exponent.
Polynomial = dict[tuple[tuple[str, int], ...], Fraction]

_EXPONENT = 1000


class _Expanded(Algebra[Polynomial]):
  """Sums of monomials; a product of sums is refused."""

  _exact = Exact()

  def number(self, value, decimal):
    if decimal:
      raise ArithmeticError('a decimal number')
    return _without_zeros({(): value})

  def name(self, name):
    return {((name, 1),): Fraction(1)}

  def negative(self, a):
    return {monomial: -number for monomial, number in a.items()}

  def add(self, a, b):
    total = dict(a)
    for monomial, number in b.items():
      total[monomial] = self._exact.add(total.get(monomial, Fraction()), number)
    return _without_zeros(total)

  def multiply(self, a, b):
    if not a or not b:
      return {}
    if len(a) > 1:
      a, b = b, a
    if len(a) > 1 or (len(b) > 1 and () not in a):
      raise ArithmeticError('a product that is not multiplied out')
    [(monomial, factor)] = a.items()
    return {
      _product(monomial, other): self._exact.multiply(factor, number)
      for other, number in b.items()
    }

  def divide(self, a, b):
    return self.multiply(a, self.power(b, {(): Fraction(-1)}))

  def power(self, a, b):
    exponent = b.get((), Fraction())
    whole = exponent.denominator == 1 and abs(exponent) <= _EXPONENT
    if set(b) - {()} or not whole:
      raise ArithmeticError('an exponent that is not a small whole number')
    if exponent == 1:
      return a
    if exponent == 0:
      return {(): Fraction(1)}
    if not a and exponent > 0:
      return {}
    if len(a) != 1:
      raise ArithmeticError('a power that is not multiplied out')
    [(monomial, number)] = a.items()
    raised = tuple((name, count * int(exponent)) for name, count in monomial)
    if any(abs(count) > _EXPONENT for _, count in raised):
      raise ArithmeticError('an exponent that is too large')
    return {raised: self._exact.power(number, exponent)}


def multiplied_out(answer: str, row: dict[str, Any]) -> float:
  """1 if the answer is the right polynomial, as a sum of monomials."""
  right = compute(row['answer'], _Expanded())
  try:
    return float(compute(answer, _Expanded()) == right)
  except (ArithmeticError, ValueError):
    return 0.0


def _without_zeros(polynomial: Polynomial) -> Polynomial:
  return {monomial: n for monomial, n in polynomial.items() if n}


def _product(a, b):
  exponents = dict(a)
  for name, count in b:
    exponents[name] = exponents.get(name, 0) + count
  if any(abs(count) > _EXPONENT for count in exponents.values()):
    raise ArithmeticError('an exponent that is too large')
  return tuple(sorted((n, count) for n, count in exponents.items() if count))
