"""Orthonormal bases of factors, through their Gram matrices."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.linalg import _products as products
from lora_opt.linalg._choice import Method, choose
from lora_opt.linalg._eigen import (
  cutoff,
  eigh,
  from_eigen,
  largest,
  spectral,
)
from lora_opt.linalg._packed import Packing, after, gram, matmul, symmetrize
from lora_opt.linalg._spread import over_mesh

Array = jax.Array

# The mean condition of a Gram matrix above which its Cholesky factor is not
# trusted. (Its basis deviates from orthogonality by eps times the condition.)
ILL_CONDITIONED = 32.0
# What the second pass of `orthonormal_bases` can resolve, relative to `cutoff`.
RESOLUTION = 1 / 128


class Bases(NamedTuple):
  """Orthonormal bases of factors, x = basis @ R."""

  bases: list[Array]  # (batch, dim, rank): U
  inverses: list[Array]  # (batch, rank, rank): R^-1, so that U = x R^-1
  grams: list[Array]  # (batch, rank, rank): x^T x


# Otherwise its branch would be compiled anew at every call outside of jit.
@functools.partial(jax.jit, static_argnames='method')
def orthonormal_bases(
  factors: Sequence[Array], method: Method = 'platform'
) -> Bases:
  """Orthonormal bases of the column spaces of many factors, in one batch.

  If all Gram matrices are well conditioned (a condition of the factor up to
  about 30), R is the Cholesky factor of the Gram matrix, or its root with the
  method 'products'. Otherwise the polar basis x (x^T x)^(-1/2) is formed with
  small eigenvalues raised to a floor, and a second time from its own Gram
  matrix, which resolves what the first pass cannot. U^T U then differs from I
  by eps times the condition. Beyond a condition of 1e4 (float64: 2e8) a
  direction is dead: its part of the basis and of R^-1 is zero, and U^T U is a
  projector.

  Args:
    factors: arrays (batch, dim, rank) of any shapes.
    method: method of the r x r work.

  Returns:
    `Bases`, lists in the order of `factors`.

  >>> x = jnp.array([[[3.0], [4.0]]])
  >>> print(orthonormal_bases([x]).bases[0].round(3))
  [[[0.6]
    [0.8]]]
  """
  grams = [gram(x) for x in factors]
  packing = Packing.of(grams)
  packed = packing.pack(grams)
  fast, good = regular_inverses(packing, packed, method)
  inverses = jax.lax.cond(
    good,
    lambda fast, *_: fast,
    # Under vmap both branches are computed; `after` keeps their order.
    lambda fast, packed, factors: resolved_inverses(
      packing, after(packed, fast), factors, method=method
    ),
    fast,
    packed,
    list(factors),
  )
  inverses = packing.unpack(inverses)
  bases = [matmul(x, t) for x, t in zip(factors, inverses, strict=True)]
  return Bases(bases, inverses, grams)


def regular_inverses(
  packing: Packing, grams: Array, method: Method = 'platform'
) -> tuple[Array, Array]:
  """R^-1 with R^T R = gram, and whether all of them can be trusted.

  Args:
    packing: the packing of the Gram matrices.
    grams: (total, r, r).
    method: with 'lapack' R is the Cholesky factor, with 'products' the root.
  """
  size = grams.shape[-1]
  padding = jnp.arange(size)[None] >= packing.repeat(packing.ranks)[:, None]
  eye = jnp.eye(size, dtype=grams.dtype)[None]
  # Scaled to a trace of one, and with the identity as padding, where there is
  # nothing to invert.
  trace = jnp.trace(grams, axis1=1, axis2=2)
  unit = jax.lax.rsqrt(trace)[:, None, None]
  regular = jnp.where(padding[:, None, :], eye, grams * unit * unit)
  inverse, error = choose(
    method,
    _cholesky_inverses,
    functools.partial(over_mesh, _inverse_roots),
    regular,
  )
  # tr C tr C^-1 lies between the condition of C and rank^2 times it. NaN, as
  # from a singular matrix, counts as a failure.
  ranks = packing.repeat(packing.ranks).astype(grams.dtype)
  spread = jnp.sum(jnp.square(inverse), axis=(1, 2)) - (size - ranks)
  good = (spread <= ILL_CONDITIONED * jnp.square(ranks)) & (error < 0.1)
  return inverse * unit, jnp.all(good)


def _cholesky_inverses(x):
  lower = jax.lax.linalg.cholesky(x, symmetrize_input=False)
  inverse = jax.lax.linalg.triangular_solve(
    lower,
    jnp.broadcast_to(products.identity(x), lower.shape),
    left_side=True,
    lower=True,
  ).mT
  return inverse, jnp.zeros_like(x[:, 0, 0])


def _inverse_roots(x):
  """Inverse roots, and how far they are from whitening x, as (batch,)."""
  # The smallest eigenvalue that `spread` allows. Smaller ones are not whitened,
  # which `error` shows.
  low = 1 / (2 * ILL_CONDITIONED * x.shape[-1] ** 2)
  _, inverse = products.root_pair(x, low)
  whitened = matmul(matmul(inverse, x), inverse)
  error = jnp.square(whitened - products.identity(x))
  return inverse, jnp.sqrt(jnp.sum(error, axis=(1, 2)))


def resolved_inverses(
  packing: Packing,
  grams: Array,
  factors: Sequence[Array],
  rtol: Array | None = None,
  method: Method = 'platform',
) -> Array:
  """R^-1 by the polar form in two passes; zero on dead directions.

  Args:
    packing: the packing of the Gram matrices.
    grams: (total, r, r).
    factors: list of (batch, dim, rank).
    rtol: (total,), a singular value below this fraction of the largest is dead.
      None: all that can be resolved count.
    method: method of the r x r work.
  """
  values, vectors = eigh(grams, method)
  highest = largest(values)
  nonzero = highest > 0
  floor = jnp.asarray(cutoff(values.dtype), values.dtype)
  if rtol is not None:
    floor = jnp.maximum(floor, jnp.square(rtol) / RESOLUTION)[:, None]
  floored = jnp.maximum(values, floor * highest)
  scales = jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, floored, 1)), 0)
  first = from_eigen(vectors, scales)
  bases = zip(factors, packing.unpack(first), strict=True)
  again = packing.pack([gram(matmul(x, t)) for x, t in bases])
  # Directions that the first pass had to raise to the floor come out below one,
  # in proportion. Only here can rounding and a small direction be told apart.
  values, vectors = eigh(again, method)
  live = values > RESOLUTION
  scales = jnp.where(live, jax.lax.rsqrt(jnp.where(live, values, 1)), 0)
  inverse = matmul(first, from_eigen(vectors, scales))
  # The factor is zero on `weak`, up to rounding. Orthogonality of the bases
  # alone would let R^-1 mix in `weak`, magnified a thousand times by the floor.
  weak = matmul(first * jnp.sqrt(highest)[:, :, None], vectors)
  weak = weak * jnp.where(live, 0, 1).astype(weak.dtype)[:, None, :]
  weak = spectral(matmul(weak, weak.mT), jnp.ones_like, method)
  return inverse - matmul(weak, inverse)


def complement(projector: Array, method: Method = 'platform') -> Array:
  """I - P for a projector P that is known up to rounding, (batch, r, r)."""
  rest = products.identity(projector) - symmetrize(projector)
  values, vectors = eigh(rest, method)
  return from_eigen(vectors, jnp.where(values > 0.5, 1, 0).astype(values.dtype))
