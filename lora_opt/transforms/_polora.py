"""PoLoRA: msign between inverse roots of the partner's curvature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.transforms._factors import Factors
from lora_opt.transforms._rates import ScalarOrSchedule, rate_at


class ScaleByPoloraState(NamedTuple):
  """State of `scale_by_polora`: half of Adam's, plus two vectors per pair."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: M, the momentum of the gradients
  # Tree of LoraPair, (batch, dim, 1): q in the place of A and p in that of B,
  # the curvature along the long axes. The rank axis has length one.
  nu: Any


def scale_by_polora(
  b1: float = 0.9,
  b2: float = 0.99,
  eps: float = 1e-12,
  *,
  damping: float = 1e-4,
  lora_scale: float = 1.0,
  half_each: bool = False,
  max_relative_step: float | None = 0.1,
  learning_rate: ScalarOrSchedule = 1.0,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """The PoLoRA direction, over pairs; `lora_opt.polora` has the maths.

  The largest singular values, and on platforms other than CPUs also the roots,
  are computed by products of r x r matrices alone. For msign, directions in
  which the squared gradient is below the cut-off of `lora_opt.linalg` are dead
  and stay at zero.

  Args:
    b1: decay of the momentum.
    b2: decay of q and p.
    eps: initial value of q and p, and the smallest damping of C. With 0, q and
      p start flat and only the relative damping counts.
    damping: delta, relative to the largest entry of q and p, and to the
      largest eigenvalue of C.
    lora_scale: the scale s in W + s A B^T. Steps are divided by it.
    half_each: whether the step of each factor moves s A B^T by one half,
      instead of both factors by the same length.
    max_relative_step: with `half_each`, the length of a step of A is at most
      this fraction of |A|. None: no limit.
    learning_rate: the learning rate that is applied later in the chain; used
      only for `max_relative_step`.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`. To first order, its
    updates move s A B^T by a matrix with singular values of at most one.

  References:
    Ghosh et al., PoLoRA: A Preconditioned Orthogonalized LoRA Optimizer,
    arXiv 2607.17620.
  """

  def init(params):
    return ScaleByPoloraState(
      jnp.zeros((), jnp.int32),
      jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params),
      jax.tree.map(lambda x: jnp.full_like(x[..., :1], eps), params),
    )

  def update(updates, state, params=None, **extra_args):
    factors = Factors.of(params, **extra_args)
    gradients, values = factors.flatten(updates), factors.flatten(params)
    mu = [
      b1 * m.astype(g.dtype) + (1 - b1) * g
      for m, g in zip(factors.flatten(state.mu), gradients, strict=True)
    ]
    ahead = [b1 * m + (1 - b1) * g for m, g in zip(mu, gradients, strict=True)]
    nu = factors.flatten(state.nu)
    curvature = [_relative(v) + damping for v in nu]
    # C of each factor. The gradient of a factor is divided by the C of its
    # partner.
    weighted = [c * x for c, x in zip(curvature, values, strict=True)]
    own = linalg.symmetrize(factors.grams(values, weighted))
    root = factors.swap(
      linalg.damped_inverse_root(own, damping, eps, factors.method)
    )
    steps = _directions(factors, ahead, curvature, root)
    of_values, of_steps = _norms(factors, values, steps)
    if half_each:
      lr = jnp.asarray(rate_at(learning_rate, state.count), of_steps.dtype)
      length = _halves(factors, of_values, lora_scale, max_relative_step, lr)
    else:
      length = _inverse(lora_scale * (of_values + factors.swap(of_values)))
    scale = length * _inverse(of_steps)
    whitened = factors.products(gradients, root)
    nu = [
      b2 * v + (1 - b2) * _mean_square(w, wide)
      for v, w, wide in zip(nu, whitened, factors.wide, strict=True)
    ]
    return factors.pairs(factors.scaled(steps, scale)), ScaleByPoloraState(
      optax.safe_increment(state.count),
      factors.pairs([m.astype(mu_dtype or m.dtype) for m in mu]),
      factors.pairs(nu),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _relative(v):
  """v divided by the largest entry of each matrix; ones if all are zero."""
  largest = jnp.max(v, axis=(1, 2), keepdims=True)
  return jnp.where(largest == 0, 1, v / jnp.where(largest == 0, 1, largest))


def _directions(factors, ahead, curvature, root):
  """D = c^(-1/2) msign(Z) C^(-1/2), Z = c^(-1/2) M C^(-1/2), of each factor."""
  long_roots = [jax.lax.rsqrt(c) for c in curvature]
  z = [
    c * m
    for c, m in zip(long_roots, factors.products(ahead, root), strict=True)
  ]
  # msign(Z) = Z (Z^T Z)^(-1/2)
  inverse = linalg.psd_inverse_sqrt(
    linalg.symmetrize(factors.grams(z)), factors.method
  )
  turned = factors.products(z, linalg.matmul(inverse, root))
  return [c * d for c, d in zip(long_roots, turned, strict=True)]


def _norms(factors, *lists):
  """The largest singular values of the matrices of each list, (total,) each."""
  grams = jnp.concatenate([factors.grams(xs) for xs in lists])
  largest = linalg.largest_eigenvalue(grams, factors.method)
  return jnp.split(jnp.sqrt(largest), len(lists))


def _inverse(x):
  """1 / x, and 0 where x is zero."""
  return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))


def _halves(factors, of_values, lora_scale, max_relative_step, lr):
  """The lengths of steps that each move s A B^T by 1/2, (total,).

  Those of A are at most `max_relative_step` |A| / lr.
  """
  of_a, of_b = factors.halves(of_values)
  halves = 0.5 / lora_scale
  if max_relative_step is None:
    of_a_step = halves * _inverse(of_b)
  else:
    # No limit if A is zero: then it is B that cannot move.
    limit = jnp.where(of_a == 0, jnp.inf, max_relative_step * of_a)
    # lr halves / max(of_b, lr halves / limit), without the rate.
    of_a_step = halves * _inverse(jnp.maximum(of_b, lr * halves / limit))
  return jnp.concatenate([of_a_step, halves * _inverse(of_a)])


def _mean_square(x, wide):
  """The mean square over the rank axis, which is kept with length one."""
  return jnp.mean(jnp.square(x), axis=1 if wide else 2, keepdims=True)
