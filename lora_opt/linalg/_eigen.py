"""Functions of symmetric matrices, computed from their eigenvectors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lora_opt.linalg import _jacobi
from lora_opt.linalg._choice import Method, choose
from lora_opt.linalg._packed import matmul
from lora_opt.linalg._spread import over_mesh

Array = jax.Array


def cutoff(dtype) -> float:
  """Relative eigenvalue at or below which a direction is dead.

  It is eight times the machine epsilon: 9.5e-7 in float32 and 1.8e-15 in
  float64. In singular values, this is 1e-3 and 4e-8 of the largest.

  >>> print(f'{cutoff(jnp.float32):.2g}')
  9.5e-07
  """
  return 8 * float(jnp.finfo(dtype).eps)


def eigh(x: Array, method: Method = 'platform') -> tuple[Array, Array]:
  """Eigenvalues (batch, r), in any order, and eigenvectors (batch, r, r)."""
  return choose(method, _lapack, _rotations, x)


def _lapack(x):
  return tuple(jnp.linalg.eigh(x, symmetrize_input=False))


def _rotations(x):
  return over_mesh(_jacobi.eigh, x)


def largest(values: Array) -> Array:
  """The largest of the eigenvalues (batch, r), at least zero, as (batch, 1)."""
  return jnp.maximum(jnp.max(values, axis=1, keepdims=True), 0)


def from_eigen(vectors: Array, values: Array) -> Array:
  """V diag(values) V^T, for (batch, r, r) and (batch, r)."""
  return matmul(vectors * values[:, None, :], vectors.mT)


def alive(values: Array, rtol: float = 0.0) -> Array:
  """Which eigenvalues (batch, r) are above the cut-off and above `rtol`."""
  relative = jnp.maximum(jnp.asarray(rtol, values.dtype), cutoff(values.dtype))
  return values > relative * largest(values)


def spectral(
  x: Array, function: Callable[[Array], Array], method: Method = 'platform'
) -> Array:
  """Applies a function to symmetric matrices; maps dead directions to zero.

  Args:
    x: (batch, r, r), symmetric, positive semi-definite up to rounding.
    function: applied to the eigenvalues that are alive.
    method: method of `eigh`.

  Returns:
    (batch, r, r).

  >>> x = jnp.diag(jnp.array([4.0, 0.0]))[None]
  >>> print(spectral(x, jax.lax.rsqrt).round(3))
  [[[0.5 0. ]
    [0.  0. ]]]
  """
  values, vectors = eigh(x, method)
  live = alive(values)
  mapped = jnp.where(live, function(jnp.where(live, values, 1)), 0)
  return from_eigen(vectors, mapped)
