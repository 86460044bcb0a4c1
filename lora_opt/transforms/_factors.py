"""All factors of all pairs as lists, and the r x r algebra they share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lora_opt import linalg
from lora_opt.pairs import LoraPair, PairMatrices


class Factors(NamedTuple):
  """How pairs are a list: A of each pair, then B of each.

  r x r matrices of all factors lie packed in one batch in the same order, so
  that every LAPACK routine runs once.
  """

  names: tuple[str, ...]
  packing: linalg.Packing
  dims: tuple[int, ...]
  wide: tuple[bool, ...]  # which are (batch, rank, dim), as in their leaves

  @classmethod
  def of(
    cls,
    pairs: dict[str, LoraPair],
    transposed: dict[str, PairMatrices] | None = None,
  ) -> 'Factors':
    """The order of these pairs; `transposed` as `on_lora_pairs` says it."""
    factors = [pairs[name][field] for field in (0, 1) for name in pairs]
    wide = [False] * len(factors)
    if transposed is not None:
      wide = [transposed[name][field] for field in (0, 1) for name in pairs]
    shapes = [
      (batch, n, m) if w else (batch, m, n)
      for (batch, m, n), w in zip((x.shape for x in factors), wide, strict=True)
    ]
    counts, dims, ranks = zip(*shapes, strict=True)
    return cls(tuple(pairs), linalg.Packing(counts, ranks), dims, tuple(wide))

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
    """What belongs to B where that of A was, and the reverse."""
    return jnp.concatenate(self.halves(packed)[::-1])

  def halves(self, packed) -> tuple[jax.Array, jax.Array]:
    """What belongs to A, and what to B."""
    half = packed.shape[0] // 2
    return packed[:half], packed[half:]

  def repeat_dims(self) -> jax.Array:
    """The long dimension of each factor (total,)."""
    return self.packing.repeat(self.dims)

  def repeat_ranks(self) -> jax.Array:
    """The rank of each factor (total,), without padding."""
    return self.packing.repeat(self.packing.ranks)


class Bases(NamedTuple):
  """What orthonormal bases U = F R^-1 are used for, without the bases.

  All packed, (total, R, R).
  """

  inverses: jax.Array  # R^-1 of each factor
  squares: jax.Array  # g^T g, g = G R^-1 with R of the partner
  grams: jax.Array  # F^T F
  cross: jax.Array | None  # F_old^T U, if F_old was given


def through_bases(
  factors: Factors,
  values: list[jax.Array],
  gradients: list[jax.Array],
  old_grams: Callable[[jax.Array], jax.Array] | None = None,
  old: Callable[[], list[jax.Array]] | None = None,
) -> Bases:
  """The r x r matrices of a step that does not depend on the factorisation.

  From Gram matrices where every factor is well conditioned; otherwise from
  bases and unmagnified gradients, formed as arrays, since a Gram matrix has
  the square of the condition.

  Args:
    factors: the order.
    values: F of each.
    gradients: G of each, or a momentum of it.
    old_grams: F_old^T F, packed, from F^T F.
    old: F_old of each; used only where Gram matrices are too coarse.

  Returns:
    `Bases`.
  """
  packing, matmul = factors.packing, linalg.matmul
  grams = factors.grams(values)
  squares = factors.grams(gradients)
  inverse, good = linalg.cholesky_inverses(packing, grams)

  def coarse():
    partner = factors.swap(inverse)
    cross = None
    if old_grams is not None:
      cross = matmul(old_grams(grams), inverse)
    return inverse, matmul(matmul(partner.mT, squares), partner), cross

  def fine():
    resolved = linalg.resolved_inverses(packing, grams, factors.tall(values))
    unmagnified = factors.products(gradients, factors.swap(resolved))
    cross = None
    if old is not None:
      cross = factors.grams(old(), factors.products(values, resolved))
    return resolved, factors.grams(unmagnified), cross

  inverse, squares, cross = jax.lax.cond(good, coarse, fine)
  return Bases(inverse, squares, grams, cross)


def largest_steps(
  factors: Factors, grams: jax.Array, max_relative_step: float, rate: Any
) -> jax.Array:
  """The largest |M_A| with |rate M_A U_B^T| <= limit |A B^T|; inf for B.

  At B = 0 only B moves in the first step. Then B is of the size of the
  learning rate and the step of A, divided by it, would be of the size of A
  itself, whatever the learning rate.

  Args:
    factors: the order.
    grams: F^T F, packed.
    max_relative_step: the limit.
    rate: what M will be multiplied by.

  Returns:
    (total,).
  """
  product = jnp.sum(grams * factors.swap(grams).mT, axis=(1, 2))
  limit = max_relative_step * jnp.sqrt(jnp.maximum(product, 0))
  a, b = factors.halves((limit / rate).astype(grams.dtype))
  return jnp.concatenate([a, jnp.full_like(b, jnp.inf)])
