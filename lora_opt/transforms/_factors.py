"""All factors of all pairs as lists, and the r x r algebra they share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lora_opt import linalg
from lora_opt.pairs import LoraPair, PairMatrices


class Factors(NamedTuple):
  """The order of all factors in a list: A of each pair, then B of each pair.

  The r x r matrices of all factors are packed in one batch in the same order,
  so that every LAPACK routine runs once.
  """

  names: tuple[str, ...]
  packing: linalg.Packing
  dims: tuple[int, ...]
  wide: tuple[bool, ...]  # which are (batch, rank, dim), as in their leaves
  # The relative rounding error of each in its leaf; 0 for float32 or wider.
  roundings: tuple[float, ...]
  method: linalg.Method = 'platform'  # of the r x r work

  @classmethod
  def of(
    cls,
    pairs: dict[str, LoraPair],
    /,
    *,
    transposed: dict[str, PairMatrices] | None = None,
    dtypes: dict[str, PairMatrices] | None = None,
    matrix_method: linalg.Method = 'platform',
    **others,
  ) -> 'Factors':
    """The order of these pairs, given the extra arguments of `update`.

    `on_lora_pairs` and `with_matrix_method` pass these; others are ignored.
    """
    del others
    factors = [pairs[name][field] for field in (0, 1) for name in pairs]
    wide = [False] * len(factors)
    if transposed is not None:
      wide = [transposed[name][field] for field in (0, 1) for name in pairs]
    roundings = [0.0] * len(factors)
    if dtypes is not None:
      kinds = [dtypes[name][field] for field in (0, 1) for name in pairs]
      roundings = [
        float(jnp.finfo(t).eps) if jnp.finfo(t).bits < 32 else 0.0
        for t in kinds
      ]
    shapes = [
      (batch, n, m) if w else (batch, m, n)
      for (batch, m, n), w in zip((x.shape for x in factors), wide, strict=True)
    ]
    counts, dims, ranks = zip(*shapes, strict=True)
    return cls(
      tuple(pairs),
      linalg.Packing(counts, ranks),
      dims,
      tuple(wide),
      tuple(roundings),
      matrix_method,
    )

  def flatten(self, pairs) -> list:
    return [pairs[name][field] for field in (0, 1) for name in self.names]

  def pairs(self, xs) -> dict[str, LoraPair]:
    half = len(self.names)
    return {
      name: LoraPair(xs[i], xs[half + i]) for i, name in enumerate(self.names)
    }

  def grams(self, xs, ys=None) -> jax.Array:
    """x^T y of each factor-sized array, packed."""
    ys = xs if ys is None else ys
    return self.packing.pack(
      [
        linalg.gram(x, y, wide=w)
        for x, y, w in zip(xs, ys, self.wide, strict=True)
      ]
    )

  def products(self, xs, packed) -> list[jax.Array]:
    """Each factor-sized array times its r x r matrix."""
    return [
      linalg.matmul(x, t, wide=w)
      for x, t, w in zip(
        xs, self.packing.unpack(packed), self.wide, strict=True
      )
    ]

  def scaled(self, xs, packed) -> list[jax.Array]:
    """Each factor-sized array times its number; packed is (total,)."""
    return [
      x * c[:, None, None]
      for x, c in zip(xs, self.packing.unpack(packed), strict=True)
    ]

  def tall(self, xs) -> list[jax.Array]:
    return [x.mT if w else x for x, w in zip(xs, self.wide, strict=True)]

  def pack(self, small) -> jax.Array:
    """{name: PairMatrices} as one batch, of matrices or of numbers."""
    xs = self.flatten(small)
    return jnp.concatenate(xs) if xs[0].ndim == 1 else self.packing.pack(xs)

  def unpack(self, packed) -> dict[str, PairMatrices]:
    xs, half = self.packing.unpack(packed), len(self.names)
    return {
      name: PairMatrices(xs[i], xs[half + i])
      for i, name in enumerate(self.names)
    }

  def swap(self, packed) -> jax.Array:
    """Exchanges the entries of A and the entries of B."""
    return jnp.concatenate(self.halves(packed)[::-1])

  def halves(self, packed) -> tuple[jax.Array, jax.Array]:
    """The entries of A, and the entries of B."""
    half = packed.shape[0] // 2
    return packed[:half], packed[half:]

  def repeat_dims(self) -> jax.Array:
    """The long dimension of each factor (total,)."""
    return self.packing.repeat(self.dims)

  def repeat_ranks(self) -> jax.Array:
    """The rank of each factor (total,), without padding."""
    return self.packing.repeat(self.packing.ranks)


class Bases(NamedTuple):
  """What a step needs of orthonormal bases U = F R^-1, without the bases.

  All are packed, (total, R, R).
  """

  inverses: jax.Array  # R^-1 of each factor
  squares: jax.Array  # g^T g, g = G R^-1 with R of the partner
  grams: jax.Array  # F^T F
  resting: jax.Array  # the projector on dead directions of each factor
  cross: jax.Array | None  # F_old^T U, if F_old was given
  size: jax.Array  # (): the sum of the squares of all gradients


def through_bases(
  factors: Factors,
  values: list[jax.Array],
  gradients: list[jax.Array],
  old_grams: Callable[[jax.Array], jax.Array] | None = None,
  old: Callable[[], list[jax.Array]] | None = None,
) -> Bases:
  """The r x r matrices of a step that does not depend on the factorisation.

  If every factor is well conditioned, they come from Gram matrices. Otherwise
  they come from bases and unmagnified gradients, formed as arrays, since a Gram
  matrix has the square of the condition. Directions of a factor that may be
  nothing but the rounding error of a 16-bit leaf are dead.

  Args:
    factors: the order of the factors.
    values: F of each factor.
    gradients: G of each factor, or its momentum.
    old_grams: function from F^T F to F_old^T F, both packed.
    old: function that returns F_old of each factor; used only if Gram matrices
      are too coarse.

  Returns:
    `Bases`.
  """
  packing, matmul = factors.packing, linalg.matmul
  grams = factors.grams(values)
  squares = factors.grams(gradients)
  size = jnp.sum(jnp.trace(squares, axis1=1, axis2=2))
  inverse, good = linalg.regular_inverses(packing, grams, factors.method)

  def coarse():
    partner = factors.swap(inverse)
    cross = None
    if old_grams is not None:
      cross = matmul(old_grams(grams), inverse)
    unmagnified = matmul(matmul(partner.mT, squares), partner)
    return inverse, unmagnified, jnp.zeros_like(grams), cross

  def fine():
    rtol = None
    if any(factors.roundings):
      rtol = 4 * packing.repeat(factors.roundings).astype(grams.dtype)
    # Under vmap both branches are computed; only `after` keeps their order.
    resolved = linalg.resolved_inverses(
      packing,
      linalg.after(grams, inverse),
      factors.tall(values),
      rtol,
      factors.method,
    )
    unmagnified = factors.products(gradients, factors.swap(resolved))
    cross = None
    if old is not None:
      cross = factors.grams(old(), factors.products(values, resolved))
    live = matmul(grams, matmul(resolved, resolved.mT))
    resting = linalg.complement(live, factors.method)
    squares = linalg.after(factors.grams(unmagnified), resting)
    return resolved, squares, resting, cross

  inverse, squares, resting, cross = jax.lax.cond(good, coarse, fine)
  return Bases(inverse, squares, grams, resting, cross, size)


def hold_weak_directions(
  factors: Factors, bases: Bases, sizes: jax.Array, last: jax.Array
) -> jax.Array:
  """W (total, r, r), which damps a step M of A where A B^T is weak.

  M_A moves A by M_A R_B^-T, and the coefficients of A in its own basis by
  M_A K^-1. Here K = R_B R_A^T, whose singular values are those of A B^T. So the
  weaker A B^T is in a direction, the larger is the relative change of A there.
  From B = 0 it has no bound, and the second-order term of A B^T takes over.
  With H = K K^T,

    W = H (H + size^2 I)^-1,      size: a singular value of A B^T,

  damps A in directions weaker than `size`, and no relative step is larger than
  |M| / (2 size). W depends only on A B^T and so keeps the invariance. B is
  never damped. Neither is A in directions in which A itself is zero: there it
  is B that cannot move.

  Args:
    factors: the order of the factors.
    bases: the bases of all factors.
    sizes: (total,), the size for each factor; only those of A are used.
    last: a result of the last LAPACK call before this function; the calls in
      here wait for it.

  Returns:
    W of every factor, which is the identity for every B.
  """
  matmul = linalg.matmul
  # H = R_B (A^T A) R_B^T, and R_B = R_B^-T (B^T B). A and B are each divided by
  # their own size: otherwise H would soon leave the range of float32.
  units = linalg.root_size(bases.grams)
  of_a, of_b = factors.halves(bases.grams / units / units)
  resting_a, _ = factors.halves(bases.resting)
  _, inverse_b = factors.halves(bases.inverses * units)
  r_b = matmul(inverse_b.mT, of_b)
  # Dead directions of A count as strong, even if all of A is zero.
  strength = jnp.trace(of_a + of_b, axis1=1, axis2=2)[:, None, None]
  h = matmul(matmul(r_b, of_a + strength * resting_a), r_b.mT)
  h = linalg.symmetrize(h)
  eye = jnp.eye(h.shape[-1], dtype=h.dtype)[None]
  size, _ = factors.halves(linalg.after(sizes, last))
  unit_a, unit_b = factors.halves(units)
  size = size[:, None, None] / unit_a / unit_b
  square = jnp.square(size)
  # The floor is for B = 0 and for a learning rate of zero, where there is
  # nothing to resolve.
  floor = linalg.cutoff(h.dtype) * jnp.trace(h, axis1=1, axis2=2)
  floor = jnp.maximum(floor[:, None, None], jnp.finfo(h.dtype).tiny)
  solved = linalg.solve_positive(
    h + jnp.maximum(square, floor) * eye, h, factors.method
  )
  # Eigenvalues of W lie between zero and one, so tr W^2 <= tr W. If this fails
  # or is NaN, rounding has made H indefinite, since the factors are too far
  # from balanced, or the square of the size overflows. A does not move then.
  trace = jnp.trace(solved, axis1=1, axis2=2)
  resolved = jnp.sum(solved * solved.mT, axis=(1, 2)) <= trace + 0.1
  solved = jnp.where(resolved[:, None, None], solved, 0)
  return jnp.concatenate([solved.mT, jnp.broadcast_to(eye, h.shape)])
