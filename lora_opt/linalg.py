"""Small dense linear algebra for low-rank factors.

A factor is (batch, dim, rank), tall and thin. Everything about it that an
optimizer asks for is a function of r x r Gram matrices, so the long axis is
contracted in one place, `gram`, and the rest is r x r.

Rank deficiency, one policy: a direction counts only if it is large enough,
relative to the largest one, to be told from rounding. Eigenvalues of a Gram
or moment matrix at or below `cutoff(dtype)` times the largest are dead; a
dead direction has inverse zero. `orthonormal_bases` resolves a factor itself
beyond its Gram matrix and so may cut lower, at `RESOLUTION * cutoff`. An
all-zero matrix has only dead directions. Nothing is ever compared with an
absolute number, so the policy does not depend on units.

On CPU with few cores several independent batched LAPACK calls in one jitted
function can wait for each other for ever (jaxlib 0.10). Functions here take
many matrices and make one call; `pack` is how they do it, and calls that
follow each other must depend on each other's results.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Array = jax.Array

# The mean condition of a Gram matrix above which its Cholesky factor, which
# loses eps times the condition of orthogonality, is not trusted.
ILL_CONDITIONED = 32.0
# What the second pass of `orthonormal_bases` still sees, relative to `cutoff`.
RESOLUTION = 1 / 128
# How much a factor may shrink at once. What an optimizer adds to a factor to
# shrink it more would leave less than four digits of it in float32.
MAX_CHANGE = 1024.0


def cutoff(dtype) -> float:
  """Relative eigenvalue at or below which a direction is dead.

  Eight units of rounding: 9.5e-7 in float32 and 1.8e-15 in float64, that is
  a singular value 1e-3 and 4e-8 of the largest.

  >>> print(f'{cutoff(jnp.float32):.2g}')
  9.5e-07
  """
  return 8 * float(jnp.finfo(dtype).eps)


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

  It must be said where x lies on a mesh of explicit axes; elsewhere, None, the
  compiler knows.
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
  """How a list of batches of small matrices lies in one batch."""

  counts: tuple[int, ...]  # matrices of each entry
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
    """One entry per matrix (total,) from one per list entry."""
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
  """x itself, but not computed further before y is there.

  It puts two LAPACK calls that have nothing to do with each other one after
  the other, or an optimizer after the model. (`jax.lax.optimization_barrier` is
  gone when code is generated.)
  """
  # A product with zero is no constant in floating point.
  zero = 0 * jnp.nan_to_num(y.reshape(-1)[0])
  return x + zero.astype(x.dtype)


def symmetrize(x: Array) -> Array:
  """The symmetric part of (..., r, r)."""
  return (x + x.mT) / 2


def eigh(x: Array) -> tuple[Array, Array]:
  """Eigenvalues, ascending (batch, r), and eigenvectors (batch, r, r)."""
  return jnp.linalg.eigh(x, symmetrize_input=False)


def from_eigen(vectors: Array, values: Array) -> Array:
  """V diag(values) V^T, for (batch, r, r) and (batch, r)."""
  return matmul(vectors * values[:, None, :], vectors.mT)


def alive(values: Array, rtol: float = 0.0) -> Array:
  """Which ascending eigenvalues (batch, r) pass the cut-off, and `rtol`."""
  relative = jnp.maximum(jnp.asarray(rtol, values.dtype), cutoff(values.dtype))
  return values > relative * jnp.maximum(values[:, -1:], 0)


def spectral(x: Array, function: Callable[[Array], Array]) -> Array:
  """A function of symmetric matrices; dead directions are mapped to zero.

  Args:
    x: (batch, r, r), symmetric, positive semi-definite up to rounding.
    function: applied to the eigenvalues that are alive.

  Returns:
    (batch, r, r).

  >>> x = jnp.diag(jnp.array([4.0, 0.0]))[None]
  >>> print(spectral(x, jax.lax.rsqrt).round(3))
  [[[0.5 0. ]
    [0.  0. ]]]
  """
  values, vectors = eigh(x)
  live = alive(values)
  mapped = jnp.where(live, function(jnp.where(live, values, 1)), 0)
  return from_eigen(vectors, mapped)


def psd_inverse_sqrt(x: Array) -> Array:
  """Inverse square root of (batch, r, r), zero on dead directions."""
  return spectral(x, jax.lax.rsqrt)


class Bases(NamedTuple):
  """Orthonormal bases of factors, x = basis @ R."""

  bases: list[Array]  # (batch, dim, rank): U
  inverses: list[Array]  # (batch, rank, rank): R^-1, so that U = x R^-1
  grams: list[Array]  # (batch, rank, rank): x^T x


@jax.jit  # or its branch would be compiled anew at every call outside of jit
def orthonormal_bases(factors: Sequence[Array]) -> Bases:
  """Orthonormal bases of the column spaces of many factors, in one batch.

  R is the Cholesky factor of the Gram matrix if all of them are well
  conditioned (condition of a factor to about 30). Otherwise the polar basis
  x (x^T x)^(-1/2) is formed with its small eigenvalues floored, and a second
  time from its own Gram matrix, which resolves what the first cannot. U^T U
  then differs from I by eps times the condition. Beyond a condition of 1e4
  (float64: 2e8) a direction is dead: its part of the basis and of R^-1 is
  zero, and U^T U is a projector.

  Args:
    factors: arrays (batch, dim, rank) of any shapes.

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
  fast, good = cholesky_inverses(packing, packed)
  inverses = jax.lax.cond(
    good,
    lambda fast, *_: fast,
    # Under vmap both sides are computed; `after` keeps their order.
    lambda fast, packed, factors: resolved_inverses(
      packing, after(packed, fast), factors
    ),
    fast,
    packed,
    list(factors),
  )
  inverses = packing.unpack(inverses)
  bases = [matmul(x, t) for x, t in zip(factors, inverses, strict=True)]
  return Bases(bases, inverses, grams)


def cholesky_inverses(packing: Packing, grams: Array) -> tuple[Array, Array]:
  """R^-1 with R^T R = gram, and whether all of them can be trusted."""
  size = grams.shape[-1]
  padding = jnp.arange(size)[None] >= packing.repeat(packing.ranks)[:, None]
  eye = jnp.eye(size, dtype=grams.dtype)[None]
  # Scale-free, and one on the padding, where there is nothing to invert.
  trace = jnp.trace(grams, axis1=1, axis2=2)
  unit = jax.lax.rsqrt(trace)[:, None, None]
  regular = jnp.where(padding[:, None, :], eye, grams * unit * unit)
  lower = jax.lax.linalg.cholesky(regular, symmetrize_input=False)
  inverse = jax.lax.linalg.triangular_solve(
    lower, jnp.broadcast_to(eye, lower.shape), left_side=True, lower=True
  ).mT
  # tr C tr C^-1 lies between the condition of C and rank^2 times it; NaN, as
  # from a singular matrix, is no success.
  ranks = packing.repeat(packing.ranks).astype(grams.dtype)
  spread = jnp.sum(jnp.square(inverse), axis=(1, 2)) - (size - ranks)
  good = jnp.all(spread <= ILL_CONDITIONED * jnp.square(ranks))
  return inverse * unit, good


def resolved_inverses(
  packing: Packing, grams: Array, factors, rtol: Array | None = None
) -> Array:
  """R^-1 by the polar form in two passes; zero on dead directions.

  Args:
    packing: of the Gram matrices.
    grams: (total, r, r).
    factors: list of (batch, dim, rank).
    rtol: (total,), a singular value below this part of the largest is dead;
      None for what can be resolved.
  """
  values, vectors = eigh(grams)
  largest = jnp.maximum(values[:, -1:], 0)
  nonzero = largest > 0
  floor = jnp.asarray(cutoff(values.dtype), values.dtype)
  if rtol is not None:
    floor = jnp.maximum(floor, jnp.square(rtol) / RESOLUTION)[:, None]
  floored = jnp.maximum(values, floor * largest)
  scales = jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, floored, 1)), 0)
  first = from_eigen(vectors, scales)
  bases = zip(factors, packing.unpack(first), strict=True)
  again = packing.pack([gram(matmul(x, t)) for x, t in bases])
  # Directions the first pass had to floor come out below one, in proportion:
  # only here rounding and a small direction can be told apart.
  values, vectors = eigh(again)
  live = values > RESOLUTION
  scales = jnp.where(live, jax.lax.rsqrt(jnp.where(live, values, 1)), 0)
  inverse = matmul(first, from_eigen(vectors, scales))
  # The factor is zero on `weak`, up to rounding. Orthogonality of the bases
  # alone would let R^-1 mix it in, a thousand times magnified by the floor.
  weak = matmul(first * jnp.sqrt(largest)[:, :, None], vectors)
  weak = weak * jnp.where(live, 0, 1).astype(weak.dtype)[:, None, :]
  weak = spectral(matmul(weak, weak.mT), jnp.ones_like)
  return inverse - matmul(weak, inverse)


def complement(projector: Array) -> Array:
  """I - P for a projector P that is known up to rounding, (batch, r, r)."""
  eye = jnp.eye(projector.shape[-1], dtype=projector.dtype)[None]
  values, vectors = eigh(eye - symmetrize(projector))
  return from_eigen(vectors, jnp.where(values > 0.5, 1, 0).astype(values.dtype))


def root_size(x: Array) -> Array:
  """The power of two next to the root of the trace (batch, 1, 1); 1 of zero.

  The size of a factor, from its Gram matrix x. Divided by it twice, which is
  exact, products of Gram matrices stay in range: those of factors of 1e10 or
  1e-10 would not be in float32.

  >>> print(root_size(jnp.array([[[100.0]], [[1e-30]], [[0.0]]])).ravel())
  [1.6000000e+01 1.7763568e-15 1.0000000e+00]
  """
  root = jnp.sqrt(jnp.trace(x, axis1=-2, axis2=-1))
  _, exponent = jnp.frexp(root)
  size = jnp.ldexp(jnp.ones_like(root), exponent)
  usable = (root > 0) & jnp.isfinite(root)
  return jnp.where(usable, size, 1)[..., None, None]


def solve_positive(x: Array, y: Array) -> Array:
  """x^-1 y for positive definite x, each (batch, r, r)."""
  lower = jax.lax.linalg.cholesky(x, symmetrize_input=False)
  half = jax.lax.linalg.triangular_solve(lower, y, left_side=True, lower=True)
  return jax.lax.linalg.triangular_solve(
    lower, half, left_side=True, lower=True, transpose_a=True
  )


def geometric_mean_pair(x: Array, y: Array) -> tuple[Array, Array]:
  """S = x^-1 # y, the symmetric solution of S x S = y, and its inverse.

  S = x^(-1/2) (x^(1/2) y x^(1/2))^(1/2) x^(-1/2). With x = A^T A and
  y = B^T B the middle matrix holds the squared singular values of A B^T. A
  direction dead there is given the largest of its values: a zero factor is
  then free to grow there at full speed, and its partner, whose gradient
  vanishes there, is not amplified. Where x itself is dead S continues with
  the mean of its live part. If nothing is alive, S = I.

  Args:
    x: (batch, r, r), symmetric positive semi-definite.
    y: the same.

  Returns:
    S and S^-1, each (batch, r, r) and positive definite.

  >>> x, y = jnp.array([[[4.0]]]), jnp.array([[[9.0]]])
  >>> s, s_inverse = geometric_mean_pair(x, y)
  >>> print(f'{s.item():.3f} {s_inverse.item():.3f}')
  1.500 0.667
  """
  size_x, size_y = root_size(x), root_size(y)
  x, y = x / size_x / size_x, y / size_y / size_y
  values, vectors = eigh(x)
  live = alive(values)
  root = jnp.where(live, jnp.sqrt(jnp.where(live, values, 1)), 0)
  inverse_root = jnp.where(live, 1 / jnp.where(live, root, 1), 0)
  # From here in the eigenbasis of x: one product less, and dead directions
  # of x are rows and columns of zeros.
  turned = matmul(matmul(vectors.mT, y), vectors)
  middle = symmetrize(root[:, :, None] * turned * root[:, None, :])
  squares, directions = eigh(middle)
  largest = jnp.sqrt(jnp.maximum(squares[:, -1:], 0))
  product_live = alive(squares)
  sigma = jnp.where(
    product_live, jnp.sqrt(jnp.where(product_live, squares, 1)), largest
  )
  some = largest > 0
  sigma = jnp.where(some, sigma, 1)

  left = inverse_root[:, :, None] * directions
  s = matmul(left * sigma[:, None, :], left.mT)
  left = root[:, :, None] * directions
  s_inverse = matmul(left / sigma[:, None, :], left.mT)

  count = jnp.sum(live, axis=1, keepdims=True).astype(values.dtype)
  mean = jnp.trace(s, axis1=1, axis2=2)[:, None] / jnp.maximum(count, 1)
  mean = jnp.where(some, mean, 1)
  eye = jnp.eye(x.shape[-1], dtype=x.dtype)[None]
  dead = jnp.where(live, 0, 1).astype(values.dtype)
  s = s + eye * (dead * mean)[:, None, :]
  s_inverse = s_inverse + eye * (dead / mean)[:, None, :]

  s, s_inverse = (
    symmetrize(matmul(matmul(vectors, m), vectors.mT)) for m in (s, s_inverse)
  )
  some = some[:, :, None]
  s, s_inverse = s * (size_y / size_x), s_inverse * (size_x / size_y)
  return jnp.where(some, s, eye), jnp.where(some, s_inverse, eye)


def balancing_change(x: Array, y: Array) -> tuple[Array, Array]:
  """Symmetric P and P^-1 with P x P = P^-1 y P^-1, that is P^2 = x^-1 # y.

  With x = A^T A and y = B^T B this makes (A P, B P^-1) balanced. Eigenvalues
  of x and of y below the square root of `cutoff`, relative to the largest,
  are raised to it: so much of their product can be resolved. So P depends
  continuously on both factors, and a change that is carried out at every
  step comes to rest. (`geometric_mean_pair` calls such directions dead and
  gives them the largest value, which is right for a preconditioner.) P = I
  if x or y is zero. P and P^-1 are at most `MAX_CHANGE`: factors further out
  of balance need several changes.

  Args:
    x: (batch, r, r), symmetric positive semi-definite.
    y: the same.

  Returns:
    P and P^-1, each (batch, r, r) and positive definite.

  >>> x, y = jnp.array([[[16.0]]]), jnp.array([[[1.0]]])
  >>> p, p_inverse = balancing_change(x, y)
  >>> print(f'{p.item():.3f} {p_inverse.item():.3f}')
  0.500 2.000
  """
  size_x, size_y = root_size(x), root_size(y)
  x, y = x / size_x / size_x, y / size_y / size_y
  values, vectors = eigh(jnp.concatenate([x, y]))
  largest = jnp.maximum(values[:, -1:], 0)
  some = jnp.all((largest > 0).reshape(2, -1, 1), axis=0)
  values = jnp.maximum(values, cutoff(x.dtype) ** 0.5 * largest)
  (values, other), (vectors, turned) = (
    jnp.split(m, 2) for m in (values, vectors)
  )
  y = from_eigen(turned, other)
  root = jnp.sqrt(jnp.where(some, values, 1))
  turned = matmul(matmul(vectors.mT, y), vectors)
  middle = symmetrize(root[:, :, None] * turned * root[:, None, :])
  squares, directions = eigh(middle)
  # Positive but for rounding, which the largest eigenvalue measures.
  squares = jnp.maximum(squares, cutoff(x.dtype) * squares[:, -1:])
  sigma = jnp.sqrt(jnp.where(some, squares, 1))
  left = directions / root[:, :, None]
  s = matmul(left * sigma[:, None, :], left.mT)
  values, turned = eigh(symmetrize(s))
  eps = float(jnp.finfo(x.dtype).eps)
  values = jnp.maximum(values, eps * values[:, -1:])
  values = jnp.sqrt(jnp.where(some, values * (size_y / size_x)[:, 0], 1))
  values = jnp.clip(values, 1 / MAX_CHANGE, MAX_CHANGE)
  vectors = matmul(vectors, turned)
  eye = jnp.eye(x.shape[-1], dtype=x.dtype)[None]
  return tuple(
    jnp.where(some[:, :, None], from_eigen(vectors, v), eye)
    for v in (values, 1 / values)
  )
