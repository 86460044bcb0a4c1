"""RefLoRA: the gradients of the best factorisation of A B^T."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.transforms._factors import Factors


class PreconditionByRefactoringState(NamedTuple):
  """State of `precondition_by_refactoring`."""

  count: jax.Array  # () int32: steps taken


def precondition_by_refactoring(
  *,
  warmup_steps: int = 0,
  every: int = 1,
  blend_steps: int = 0,
  max_spread: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Makes gradients G_A S^-1 and G_B S, with S = (A^T A)^-1 # (B^T B).

  # is the matrix geometric mean. With P P^T = S the pair (A P, B P^-T) is
  balanced, (A P)^T A P = (B P^-T)^T B P^-T, and a plain gradient step of that
  pair moves delta_w as the new gradients do. Directions in which A B^T is
  (still) zero are treated as in `linalg.geometric_mean_pair`: at B = 0 the
  gradients pass unchanged, and nothing freezes.

  Args:
    warmup_steps: number of initial steps whose gradients pass unchanged.
    every: after the warm-up, number of steps from one preconditioned step to
      the next, as in the authors' code. Gradients in between pass unchanged.
    blend_steps: after the warm-up, number of steps of a linear transition from
      I to the preconditioner. Otherwise the gradients jump by up to S^-1, while
      an Adam after this one still has the second moments of the old gradients.
    max_spread: upper limit of tr(S) tr(S^-1) / rank^2, which is one for S = I.
      Beyond it, S is drawn towards its mean. None: no limit, which a plain
      gradient step needs to be invariant.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Zhang et al., RefLoRA, arXiv 2505.18877.
  """

  def init(params):
    del params
    return PreconditionByRefactoringState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None, **extra_args):
    factors = Factors.of(params, **extra_args)
    grams = factors.grams(factors.flatten(params))
    s, s_inverse = linalg.geometric_mean_pair(
      *factors.halves(grams), factors.method
    )
    if max_spread is not None:
      ranks, _ = factors.halves(factors.repeat_ranks())
      s, s_inverse = _bounded(s, s_inverse, ranks, max_spread)
    weight = _weight(state.count, warmup_steps, every, blend_steps, s.dtype)
    eye = jnp.eye(s.shape[-1], dtype=s.dtype)[None]
    change = weight * jnp.concatenate([s_inverse, s]) + (1 - weight) * eye
    new = factors.pairs(factors.products(factors.flatten(updates), change))
    count = optax.safe_increment(state.count)
    return new, PreconditionByRefactoringState(count)

  return optax.GradientTransformationExtraArgs(init, update)


def _bounded(s, s_inverse, ranks, max_spread):
  """Blends S with c I and S^-1 with I / c to keep to `max_spread`."""
  size = s.shape[-1]
  counted = jnp.where(jnp.arange(size)[None] < ranks[:, None], 1, 0)  # unpadded

  def mean(m):
    diagonal = jnp.diagonal(m, axis1=1, axis2=2) * counted.astype(m.dtype)
    return jnp.sum(diagonal, axis=1) / ranks.astype(m.dtype)

  up, down = mean(s), mean(s_inverse)
  kept = jnp.minimum(1, max_spread / (up * down))[:, None, None]
  centre = (jnp.sqrt(up) / jnp.sqrt(down))[:, None, None]
  rest = (1 - kept) * jnp.eye(size, dtype=s.dtype)[None]
  return kept * s + rest * centre, kept * s_inverse + rest / centre


def is_due(count, warmup_steps, every):
  since = count - warmup_steps
  return (since >= 0) & (since % every == 0)


def _weight(count, warmup_steps, every, blend_steps, dtype):
  """The weight of the preconditioner in this step, 0 to 1."""
  since = (count - warmup_steps + 1).astype(dtype)
  steps = jnp.maximum(blend_steps, 1).astype(dtype)
  blend = jnp.clip(since / steps, 0, 1)
  return jnp.where(is_due(count, warmup_steps, every), blend, 0)
