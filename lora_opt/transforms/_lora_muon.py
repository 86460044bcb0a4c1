"""LoRA-Muon: the spectral-norm step of A B^T, one factor at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.transforms._factors import (
  Factors,
  hold_weak_directions,
  through_bases,
)
from lora_opt.transforms._rates import ScalarOrSchedule, rate_at


class ScaleByLoraMuonState(NamedTuple):
  """State of `scale_by_lora_muon`: half of Adam's."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: the momentum of the gradients


def scale_by_lora_muon(
  b1: float = 0.95,
  *,
  nesterov: bool = True,
  lora_scale: float = 1.0,
  max_relative_step: float | None = None,
  learning_rate: ScalarOrSchedule = 1.0,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """The direction msign(M_A S_B^(-1/2)) S_B^(-1/2) / 2, and likewise for B.

  S_B = B^T B, and msign(X) = X (X^T X)^(-1/2) sets all singular values to one.
  So each of the two directions moves A B^T by a matrix with singular values
  1/2. Any root R^T R = S_B gives the same step,
  M R^-1 (R^-T M^T M R^-1)^(-1/2) R^-T. It is computed in this form, from Gram
  matrices, with eigenvectors in place of Newton-Schulz iterations. The momentum
  is that of the raw gradients, which transform like the preconditioner, so the
  path of A B^T is the same for (A T, B T^-T).

  Args:
    b1: decay of the momentum, M <- b1 M + G.
    nesterov: use G + b1 M in place of M.
    lora_scale: the scale s in W + s A B^T. Steps are divided by it.
    max_relative_step: largest relative change of A in one step. The step is
      damped in directions in which A B^T is so weak that the step would change
      A by more than this fraction. None: no damping. See
      `hold_weak_directions`.
    learning_rate: the learning rate that is applied later in the chain; used
      only for `max_relative_step`.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    LoRA-Muon, arXiv 2606.12921. Jordan et al., Muon, 2024.
  """

  def init(params):
    mu = jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params)
    return ScaleByLoraMuonState(jnp.zeros((), jnp.int32), mu)

  def update(updates, state, params=None, **extra_args):
    factors = Factors.of(params, **extra_args)
    gradients = factors.flatten(updates)
    mu = [
      b1 * m.astype(g.dtype) + g
      for m, g in zip(factors.flatten(state.mu), gradients, strict=True)
    ]
    ahead = mu
    if nesterov:
      ahead = [b1 * m + g for m, g in zip(mu, gradients, strict=True)]
    bases = through_bases(factors, factors.flatten(params), ahead)
    inverse = factors.swap(bases.inverses)
    root = linalg.psd_inverse_sqrt(
      linalg.symmetrize(bases.squares), factors.method
    )
    left = linalg.matmul(inverse, root) * (0.5 / lora_scale)
    if max_relative_step is not None:
      lr = jnp.asarray(rate_at(learning_rate, state.count), left.dtype)
      sizes = jnp.broadcast_to(
        lr * (0.25 / lora_scale / max_relative_step), left.shape[:1]
      )
      held = hold_weak_directions(factors, bases, sizes, last=root)
      left = linalg.matmul(left, held)
    steps = factors.products(ahead, linalg.matmul(left, inverse.mT))
    return factors.pairs(steps), ScaleByLoraMuonState(
      optax.safe_increment(state.count),
      factors.pairs([m.astype(mu_dtype or m.dtype) for m in mu]),
    )

  return optax.GradientTransformationExtraArgs(init, update)
