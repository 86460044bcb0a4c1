"""Gram matrices of factors, and batches of small matrices."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Array = jax.Array


def gram(x: Array, y: Array | None = None, *, wide: bool = False) -> Array:
  """Inner products of columns, x^T y (y = x if absent).

  Args:
    x: (batch, dim, rank).
    y: (batch, dim, rank'), or None.
    wide: factors are given transposed, (batch, rank, dim).

  Returns:
    (batch, rank, rank').

  >>> print(gram(jnp.ones((1, 3, 2))))
  [[[3. 3.]
    [3. 3.]]]
  """
  y = x if y is None else y
  indices = 'brd,bsd->brs' if wide else 'bdr,bds->brs'
  return jnp.einsum(
    indices,
    x,
    y,
    precision=jax.lax.Precision.HIGHEST,
    out_sharding=replicated(x),
  )


def replicated(x: Array, ndim: int = 3) -> NamedSharding | None:
  """The sharding of r x r results: the same on all devices.

  It must be given if x lies on a mesh with explicit axes. Otherwise it is None,
  and the compiler finds it.
  """
  mesh = jax.typeof(x).sharding.mesh
  if AxisType.Explicit not in mesh.axis_types:
    return None
  return NamedSharding(mesh, PartitionSpec(*[None] * ndim))


def matmul(x: Array, y: Array, *, wide: bool = False) -> Array:
  """Batched product at full precision, on every device.

  Args:
    x: (batch, m, k).
    y: (batch, k, n).
    wide: x is given transposed, (batch, k, m), and so is the result.

  Returns:
    (batch, m, n), or (batch, n, m) if wide.
  """
  indices = 'bkm,bkn->bnm' if wide else 'bmk,bkn->bmn'
  return jnp.einsum(indices, x, y, precision=jax.lax.Precision.HIGHEST)


class Packing(NamedTuple):
  """The layout of a list of batches of small matrices in one batch."""

  counts: tuple[int, ...]  # number of matrices of each list entry
  ranks: tuple[int, ...]  # their size

  @classmethod
  def of(cls, matrices: Sequence[Array]) -> 'Packing':
    """The packing of matrices (count, ..., rank)."""
    return cls(
      tuple(m.shape[0] for m in matrices), tuple(m.shape[-1] for m in matrices)
    )

  def pack(self, matrices: Sequence[Array]) -> Array:
    """One batch (total, R, R), zero-padded to the largest rank R.

    A spectral function of a padded matrix is the padded spectral function, so
    `unpack` may simply cut.
    """
    size = max(self.ranks)
    padded = [
      jnp.pad(m, ((0, 0),) + ((0, size - m.shape[-1]),) * 2) for m in matrices
    ]
    return padded[0] if len(padded) == 1 else jnp.concatenate(padded)

  def repeat(self, values: Sequence[float | int]) -> Array:
    """Expands one value per list entry to one per matrix, (total,)."""
    return jnp.repeat(
      jnp.asarray(values),
      jnp.asarray(self.counts),
      total_repeat_length=sum(self.counts),
    )

  def unpack(self, packed: Array) -> list[Array]:
    """Inverse of `pack`; (total,) is split into vectors."""
    out, start = [], 0
    for count, rank in zip(self.counts, self.ranks, strict=True):
      piece = packed[start : start + count]
      out.append(piece if packed.ndim == 1 else piece[:, :rank, :rank])
      start += count
    return out


def after(x: Array, y: Array) -> Array:
  """x itself, but computations with it wait until y has been computed.

  This runs two independent LAPACK calls one after the other, or an optimizer
  after the model. (`jax.lax.optimization_barrier` is removed before code is
  generated.)
  """
  # The compiler keeps this: a product with zero is not a constant in floating
  # point.
  zero = 0 * jnp.nan_to_num(y.reshape(-1)[0])
  return x + zero.astype(x.dtype)


def symmetrize(x: Array) -> Array:
  """The symmetric part of (..., r, r)."""
  return (x + x.mT) / 2


def root_size(x: Array) -> Array:
  """The power of two above the root of the trace, (batch, 1, 1); 1 for zero.

  This is the size of a factor, from its Gram matrix x. If Gram matrices are
  divided by it twice, which is exact, their products stay in range. For factors
  of 1e10 or 1e-10 the products would otherwise leave the range of float32.

  >>> print(root_size(jnp.array([[[100.0]], [[1e-30]], [[0.0]]])).ravel())
  [1.6000000e+01 1.7763568e-15 1.0000000e+00]
  """
  root = jnp.sqrt(jnp.trace(x, axis1=-2, axis2=-1))
  _, exponent = jnp.frexp(root)
  size = jnp.ldexp(jnp.ones_like(root), exponent)
  usable = (root > 0) & jnp.isfinite(root)
  return jnp.where(usable, size, 1)[..., None, None]
