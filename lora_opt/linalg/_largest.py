"""The largest eigenvalue, and an inverse root that is damped by it."""

import jax
import jax.numpy as jnp

from lora_opt.linalg import _products as products
from lora_opt.linalg._choice import Method, choose
from lora_opt.linalg._eigen import cutoff, eigh, from_eigen
from lora_opt.linalg._eigen import largest as largest_of
from lora_opt.linalg._packed import matmul
from lora_opt.linalg._spread import over_mesh

Array = jax.Array

# x^2048 is like the last of 2048 power iterations, from all start vectors.
_SQUARINGS = 11


def largest_eigenvalue(x: Array, method: Method = 'platform') -> Array:
  """The largest eigenvalue (batch,), by products; zero for a matrix of zeros.

  It is computed by products on every platform, as tr(P^2 x) / tr(P^2) with
  P = x^2048, found by squaring. This is a mean of the eigenvalues in which only
  the largest have weight. It is never too large. It is exact unless other
  eigenvalues are within a hundredth of the largest. In the worst case, many
  eigenvalues two thousandths below the largest, it is too small by the fraction
  ln(r) / 4096: 0.1 % for rank 64.

  Args:
    x: (batch, r, r), symmetric, positive semi-definite up to rounding.
    method: 'lapack' computes the same, but does not divide the batch among
      devices.

  >>> print(largest_eigenvalue(jnp.diag(jnp.array([4.0, 3.0, 0.0]))[None]))
  [4.]
  """
  return choose(method, _by_squaring, lambda x: over_mesh(_by_squaring, x), x)


def _by_squaring(x):
  column = products.column

  def unit(x):
    trace = jnp.trace(x, axis1=1, axis2=2)
    return x / column(jnp.where(trace == 0, 1, trace))

  power = jax.lax.fori_loop(
    0, _SQUARINGS, lambda _, p: unit(matmul(p, p)), unit(x)
  )
  total = jnp.sum(power * power, axis=(1, 2))
  weighted = jnp.sum(matmul(power, x) * power, axis=(1, 2))
  return weighted / jnp.where(total == 0, 1, total)


def damped_inverse_root(
  x: Array,
  damping: float | Array,
  floor: float | Array = 0.0,
  method: Method = 'platform',
) -> Array:
  """(x + max(damping l, floor) I)^(-1/2) with l the largest eigenvalue of x.

  No direction is dead here, since each eigenvalue is raised by this shift. With
  a floor of zero, a matrix of zeros has no scale; its root is the identity.

  Args:
    x: (batch, r, r), symmetric, positive semi-definite up to rounding.
    damping: above 0. With 'products' in float32, eigenvalues that are below
      1e-5 of the largest after damping count as 1e-5 of it.
    floor: not negative.
    method: method of computing the root.

  Returns:
    (batch, r, r).

  >>> x = jnp.diag(jnp.array([3.0, 0.0]))[None]
  >>> print(damped_inverse_root(x, 1 / 3).round(3))
  [[[0.5 0. ]
    [0.  1. ]]]
  """

  def shift_of(largest):
    relative, least = (jnp.asarray(v, x.dtype) for v in (damping, floor))
    shift = jnp.maximum(relative * largest.reshape(-1), least)
    return jnp.where(shift == 0, 1, shift)

  def by_eigenvectors(x):
    values, vectors = eigh(x, 'lapack')
    shift = shift_of(largest_of(values))
    values = jnp.maximum(values, 0) + shift[:, None]
    return from_eigen(vectors, jax.lax.rsqrt(values))

  def by_products(x):
    column = products.column
    largest = _by_squaring(x)
    shift = shift_of(largest)
    whole = column(largest + shift)
    unit = (x + column(shift) * products.identity(x)) / whole
    low = products.lowest(x, cutoff(x.dtype))
    _, inverse = products.root_pair(unit, low)
    return inverse / jnp.sqrt(whole)

  return choose(method, by_eigenvectors, lambda x: over_mesh(by_products, x), x)
