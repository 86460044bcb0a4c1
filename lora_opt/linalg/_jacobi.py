"""Eigenvectors by rotations alone, for all matrices of a batch at once.

The batch is the last axis, which lies in the lanes of a vector unit. Every step
of the loop is a few operations on all columns. On a TPU this compiles in a
second, where a library call for eigenvectors takes twenty.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array

# Sweeps through all pairs of columns. For 2 to 33 columns and conditions up to
# 1e12, 8 sweeps reach rounding accuracy in float32; 64 columns need two more
# (tested). Convergence is quadratic near the solution.
_SWEEPS = 8


def eigh(x: Array) -> tuple[Array, Array]:
  """Eigenvalues (batch, r), in any order, and eigenvectors (batch, r, r).

  This uses one-sided Jacobi rotations: pairs of columns of x J are rotated
  until all columns are orthogonal; then J holds the eigenvectors. In each of r
  turns, neighbouring columns are rotated and swapped, so that every column
  meets every other one (the odd-even order of Brent and Luk).

  Args:
    x: (batch, r, r), symmetric.

  References:
    Hestenes, Inversion of matrices by biorthogonalization, 1958. Brent and Luk,
    The solution of singular-value and symmetric eigenvalue problems on
    multiprocessor arrays, 1985.
  """
  rank = x.shape[-1]
  even = rank + rank % 2
  x = jnp.pad(x, ((0, 0), (0, even - rank), (0, even - rank)))
  # Squares of eigenvalues must stay in the range of the dtype.
  size = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
  size = jnp.where(size > 0, size, 1)
  columns = jnp.moveaxis(x / size, 0, -1)
  eye = jnp.eye(even, dtype=x.dtype)[:, :, None]
  both = jnp.concatenate(
    [columns, jnp.broadcast_to(eye, columns.shape)], axis=1
  )

  def two_turns(_, z):
    z = _turn_neighbours(z, even)
    if even == 2:
      return z
    inner = _turn_neighbours(z[1:-1], even)
    return jax.lax.dynamic_update_slice(z, inner, (1, 0, 0))

  turns = _sweeps(even, x.dtype) * even // 2
  both = jax.lax.fori_loop(0, turns, two_turns, both)
  turned, vectors = both[:, :even], both[:, even:]
  values = jnp.sum(turned * vectors, axis=1).T * size[:, :, 0]
  vectors = jnp.transpose(vectors, (2, 1, 0))
  if even != rank:
    return _without_padding(values, vectors, rank)
  return values, vectors


def _sweeps(rank, dtype) -> int:
  more = max(0, 2 * (math.ceil(math.log2(rank)) - 5))
  return _SWEEPS + more + (0 if jnp.finfo(dtype).bits <= 32 else 2)


def _turn_neighbours(z, rank):
  """Turns columns 0 and 1, 2 and 3, ... once; z: (columns, 2 rank, batch)."""
  pairs = z.reshape(z.shape[0] // 2, 2, *z.shape[1:])
  cosine, sine = _angles(pairs[:, 0, :rank], pairs[:, 1, :rank])
  signs = jnp.array([1, -1], z.dtype).reshape(1, 2, 1, 1)
  new = cosine[:, None] * pairs[:, ::-1] + signs * sine[:, None] * pairs
  return new.reshape(z.shape)


def _angles(x, y):
  """The rotations that make columns x and y (pairs, rank, batch) orthogonal."""

  def dot(a, b):
    return jnp.sum(a * b, axis=1, keepdims=True)

  gap, cross = dot(y, y) - dot(x, x), dot(x, y)
  below = jnp.abs(gap) + jnp.sqrt(gap * gap + 4 * cross * cross)
  tangent = jnp.where(gap < 0, -2, 2).astype(x.dtype) * cross
  tangent = jnp.where(below > 0, tangent / jnp.where(below > 0, below, 1), 0)
  cosine = jax.lax.rsqrt(1 + tangent * tangent)
  return cosine, cosine * tangent


def _without_padding(values, vectors, rank):
  """Drops the eigenpair of the padding, which is a row and column of zeros."""
  padding = jnp.argmax(jnp.abs(vectors[:, rank]), axis=1)[:, None]
  kept = jnp.arange(rank)[None]
  kept = kept + jnp.where(kept >= padding, 1, 0)
  return (
    jnp.take_along_axis(values, kept, axis=1),
    jnp.take_along_axis(vectors[:, :rank], kept[:, None], axis=2),
  )
