"""Linear equations by elimination, for all matrices of a batch at once."""

import jax
import jax.numpy as jnp

Array = jax.Array


def solve(x: Array, y: Array) -> Array:
  """x^-1 y for positive definite x, each (batch, r, r).

  This is Gauss-Jordan elimination without pivots, which positive definite
  matrices do not need. It loses no more accuracy than a Cholesky factor does,
  whereas products with an inverse lose the condition of x twice. The batch is
  the last axis, as in `_jacobi`.
  """
  rank = x.shape[-1]
  rows = jnp.moveaxis(jnp.concatenate([x, y], axis=2), 0, -1)
  index = jnp.arange(rank)[:, None, None]

  def eliminate(k, rows):
    row = jax.lax.dynamic_index_in_dim(rows, k, axis=0)
    row = row / jax.lax.dynamic_index_in_dim(row, k, axis=1)
    column = jax.lax.dynamic_index_in_dim(rows, k, axis=1)
    return jnp.where(index == k, row, rows - column * row)

  rows = jax.lax.fori_loop(0, rank, eliminate, rows)
  return jnp.moveaxis(rows[:, rank:], -1, 0)
