"""Inverse roots and inverses of r x r matrices."""

import functools

import jax
import jax.numpy as jnp

from lora_opt.linalg import _elimination
from lora_opt.linalg import _products as products
from lora_opt.linalg._choice import Method, choose
from lora_opt.linalg._eigen import alive, cutoff, eigh, from_eigen
from lora_opt.linalg._packed import matmul
from lora_opt.linalg._spread import over_mesh

Array = jax.Array


def inverse_root(
  x: Array,
  *,
  rtol: float = 0.0,
  shift: Array | None = None,
  eps: float = 0.0,
  method: Method = 'platform',
) -> Array:
  """((x + shift I)^(1/2) + eps I)^-1, zero on dead directions of x.

  Args:
    x: (batch, r, r), symmetric, positive semi-definite up to rounding.
    rtol: eigenvalues of x at or below this fraction of the largest are dead,
      and so are those at or below the cut-off.
    shift: (batch,), not negative; None: zero.
    eps: not negative.
    method: method of the computation. With 'products' the largest eigenvalue,
      and with it the cut-off, is known to 5 %, and a direction near the cut-off
      may count in part. In float32 the result for eigenvalues below 1e-5 of the
      largest is then too small, by up to a third.

  Returns:
    (batch, r, r).

  >>> x = jnp.diag(jnp.array([4.0, 0.0]))[None]
  >>> print(inverse_root(x, eps=2.0).round(3))
  [[[0.25 0.  ]
    [0.   0.  ]]]
  """
  if shift is None:
    shift = jnp.zeros(x.shape[:1], x.dtype)
  return choose(
    method,
    functools.partial(_by_eigenvectors, rtol, eps),
    functools.partial(over_mesh, functools.partial(_by_products, rtol, eps)),
    x,
    shift,
  )


def _by_eigenvectors(rtol, eps, x, shift):
  values, vectors = eigh(x, 'lapack')
  live = alive(values, rtol)
  values = values + shift[:, None]
  scale = 1 / (jnp.sqrt(jnp.where(live, values, 1)) + eps)
  return from_eigen(vectors, jnp.where(live, scale, 0))


def _by_products(rtol, eps, x, shift):
  column = products.column
  size = products.largest_eigenvalue(x)
  unit = x / column(size)
  cut = cutoff(x.dtype)
  if isinstance(rtol, int | float):
    cut = max(rtol, cut)
    live = products.projector(unit, cut)
  else:  # traced: scales x so that its cut-off becomes the fixed one
    scale = cut / jnp.maximum(jnp.asarray(rtol, x.dtype), cut)
    live = products.projector(unit * scale, cut)
  eye = products.identity(x)
  # Divide by the largest eigenvalue after the shift.
  whole = size + shift
  unit = column(size / whole) * products.filled(unit, live)
  unit = unit + column(shift / whole) * eye
  root, inverse = products.root_pair(unit, products.lowest(x, cut))
  scale = jnp.sqrt(whole)
  if not isinstance(eps, int | float) or eps:  # it may be traced
    both = scale + eps
    root = column(scale / both) * root + column(eps / both) * eye
    inverse = products.inverse(root, products.lowest(x, cut) ** 0.5)
    scale = both
  return matmul(matmul(live, inverse / column(scale)), live)


def psd_inverse_sqrt(x: Array, method: Method = 'platform') -> Array:
  """Inverse square root of (batch, r, r), zero on dead directions."""
  return inverse_root(x, method=method)


def inverse(
  x: Array, *, shift: float | Array = 0.0, method: Method = 'platform'
) -> Array:
  """(x + shift I)^-1; without a shift, zero on dead directions of x.

  Args:
    x: (batch, r, r), symmetric, positive semi-definite up to rounding.
    shift: a number, not negative. With 'products', an eigenvalue that the shift
      lifts above zero by less than the cut-off counts as lifted to the cut-off.
    method: method of the computation.

  >>> x = jnp.diag(jnp.array([4.0, 0.0]))[None]
  >>> print(inverse(x), inverse(x, shift=4.0))
  [[[0.25 0.  ]
    [0.   0.  ]]] [[[0.125 0.   ]
    [0.    0.25 ]]]
  """
  shift = jnp.broadcast_to(jnp.asarray(shift, x.dtype), x.shape[:1])
  by_products = functools.partial(over_mesh, _inverse_by_products)
  return choose(method, _inverse_by_eigenvectors, by_products, x, shift)


def _inverse_by_eigenvectors(x, shift):
  values, vectors = eigh(x, 'lapack')
  shift = shift[:, None]
  live = alive(values) | (shift > 0)
  shifted = jnp.maximum(values, 0) + shift
  return from_eigen(
    vectors, jnp.where(live, 1 / jnp.where(live, shifted, 1), 0)
  )


def _inverse_by_products(x, shift):
  column = products.column
  cut = cutoff(x.dtype)
  size = products.largest_eigenvalue(x)
  unit = x / column(size)
  live = products.projector(unit, cut)
  whole = size + shift
  # Dead eigenvalues are taken as zero, not as what rounding makes of them.
  eye = products.identity(x)
  lifted = column(shift) > 0
  unit = products.filled(unit, live) - jnp.where(lifted, eye - live, 0)
  raised = column(size / whole) * unit + column(shift / whole) * eye
  found = products.inverse(raised, products.lowest(x, cut)) / column(whole)
  masked = matmul(matmul(live, found), live)
  return jnp.where(lifted, found, masked)


def solve_positive(x: Array, y: Array, method: Method = 'platform') -> Array:
  """x^-1 y for positive definite x, each (batch, r, r)."""
  by_rows = functools.partial(over_mesh, _elimination.solve)
  return choose(method, _solve_by_cholesky, by_rows, x, y)


def _solve_by_cholesky(x, y):
  lower = jax.lax.linalg.cholesky(x, symmetrize_input=False)
  half = jax.lax.linalg.triangular_solve(lower, y, left_side=True, lower=True)
  return jax.lax.linalg.triangular_solve(
    lower, half, left_side=True, lower=True, transpose_a=True
  )
