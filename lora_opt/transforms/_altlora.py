"""AltLoRA: one factor per step, with a momentum that follows its partner."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.transforms._factors import Factors


class ScaleByAltLoraState(NamedTuple):
  """State of `scale_by_altlora`."""

  count: jax.Array  # () int32: steps taken; even: B's turn, odd: A's
  mu: Any  # tree of LoraPair: the momentum, in the current factorisation
  previous: Any  # tree of LoraPair: the factors at the last step


def scale_by_altlora(
  b1: float = 0.9,
  reg: float = 0.0,
  *,
  lora_scale: float = 1.0,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """The momentum of the projected full gradient; A and B take turns.

  In A's turn G_A (B^T B)^-1 / s^2 is the matrix D for which s D B^T is
  closest to the full gradient. M_A B_old^T, the momentum as a step of the
  whole matrix, is carried into the span of the new B by the same projection:

    M_A <- b1 M_A (B_old^T B) (B^T B)^-1 + (1 - b1) G_A (B^T B)^-1 / s^2

  and likewise for B. The factor whose turn it is not does not move. B begins,
  since A has no gradient at B = 0.

  Args:
    b1: decay of the momentum.
    reg: multiple of the identity that is added to the Gram matrices. With 0,
      the cut-off of `lora_opt.linalg` applies instead.
    lora_scale: the scale s in W + s A B^T.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Yu et al., AltLoRA: Towards Better Gradient Approximation in Low-Rank
    Adaptation with Alternating Projections, arXiv 2505.12455.
  """

  def init(params):
    return ScaleByAltLoraState(
      jnp.zeros((), jnp.int32),
      jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params),
      jax.tree.map(jnp.zeros_like, params),
    )

  def update(updates, state, params=None, **extra_args):
    factors = Factors.of(params, **extra_args)
    values, gradients = factors.flatten(params), factors.flatten(updates)
    inverse = linalg.inverse(
      factors.swap(factors.grams(values)), shift=reg, method=factors.method
    )
    cross = factors.grams(factors.flatten(state.previous), values)
    carry = linalg.matmul(factors.swap(cross), inverse)
    turn_of_b = state.count % 2 == 0
    a, b = factors.halves(factors.repeat_dims())
    in_turn = jnp.concatenate(
      [
        jnp.broadcast_to(~turn_of_b, a.shape),
        jnp.broadcast_to(turn_of_b, b.shape),
      ]
    )[:, None, None]
    # Out of turn, the momentum follows its partner and takes in no gradient.
    carry = jnp.where(in_turn, b1 * carry, carry)
    take = jnp.where(in_turn, (1 - b1) / lora_scale**2 * inverse, 0)
    old = [
      m.astype(g.dtype)
      for m, g in zip(factors.flatten(state.mu), gradients, strict=True)
    ]
    mu = [
      m + g
      for m, g in zip(
        factors.products(old, carry),
        factors.products(gradients, take),
        strict=True,
      )
    ]
    half = len(mu) // 2
    turns = [~turn_of_b] * half + [turn_of_b] * half
    steps = [
      m * jnp.where(turn, 1, 0).astype(m.dtype)
      for m, turn in zip(mu, turns, strict=True)
    ]
    return factors.pairs(steps), ScaleByAltLoraState(
      optax.safe_increment(state.count),
      factors.pairs([m.astype(mu_dtype or m.dtype) for m in mu]),
      params,
    )

  return optax.GradientTransformationExtraArgs(init, update)
