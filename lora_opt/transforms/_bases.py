"""Work on the directions of a factor, whatever its magnitude."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.pairs import LoraPair, PairMatrices

ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]


class InOrthonormalBasesState(NamedTuple):
  """State of `in_orthonormal_bases`."""

  count: jax.Array  # () int32: steps taken, for the schedule
  bases: Any  # tree of LoraPair: U of each factor at the last step
  inner_state: Any


def in_orthonormal_bases(
  inner: optax.GradientTransformation,
  *,
  lora_scale: float = 1.0,
  max_relative_step: float | None = None,
  learning_rate: ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
  """Shows `inner` the gradients that do not depend on the factorisation.

  A = U_A R_A and B = U_B R_B, with orthonormal columns in U. The
  *unmagnified* gradients G_A R_B^-1 = G U_B and G_B R_A^-1 = G^T U_A, with G
  the gradient of the whole matrix, are the same for (A T, B T^-T), up to a
  rotation. `inner` makes steps M of them; A moves by M_A R_B^-T, so that
  delta_w moves by M_A U_B^T (and so for B). Any basis gives the same step.

  `inner.update` receives an extra argument `basis_change`,
  {name: PairMatrices}: P = U^T U_old of the *other* factor, which takes what
  was carried along to the new basis, as M P^T.

  Dead directions (`linalg.orthonormal_bases`) have no gradient and no step;
  where B is zero A rests, and B starts to move alone. Then B is of the size
  of the learning rate, and the next step of A, divided by it, of the size of
  A itself, whatever the learning rate: the initialisation is thrown away.
  `max_relative_step` scales A's step down to |lr M_A| <= limit |A B^T|. That
  is measured on delta_w, so it is invariant, and soon without effect. B is
  never held back.

  Args:
    inner: a transformation over pairs (see `on_lora_pairs`).
    lora_scale: s of W + s A B^T; steps are divided by it, so that a learning
      rate keeps its meaning for every alpha and rank.
    max_relative_step: the largest part of delta_w that a step of A may
      change; None: any.
    learning_rate: the one applied later in the chain; used only for
      `max_relative_step`, not applied.

  Returns:
    A transformation over pairs.

  References:
    Yen et al., LoRA Done RITE, arXiv 2410.20625.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return InOrthonormalBasesState(
      count=jnp.zeros((), jnp.int32),
      bases=jax.tree.map(jnp.zeros_like, params),
      inner_state=inner.init(params),
    )

  def update(updates, state, params=None, **extra_args):
    factors, treedef = jax.tree.flatten(params)
    result = linalg.orthonormal_bases(factors)
    bases = treedef.unflatten(result.bases)
    # R^-1 of both factors, A first; treedef would make it a pair of factors.
    inverses = {
      name: PairMatrices(*pair)
      for name, pair in treedef.unflatten(result.inverses).items()
    }
    grams = treedef.unflatten(result.grams)
    unmagnified = {
      name: LoraPair(
        linalg.matmul(g.a, inverses[name].b),
        linalg.matmul(g.b, inverses[name].a),
      )
      for name, g in updates.items()
    }
    steps, inner_state = inner.update(
      unmagnified,
      state.inner_state,
      params,
      basis_change={
        name: PairMatrices(
          linalg.gram(u.b, state.bases[name].b),
          linalg.gram(u.a, state.bases[name].a),
        )
        for name, u in bases.items()
      },
      **extra_args,
    )
    rate = 1 / lora_scale
    allowed = {name: None for name in steps}
    if max_relative_step is not None:
      schedule = callable(learning_rate)
      lr = learning_rate(state.count) if schedule else learning_rate
      allowed = {
        name: max_relative_step * _product_norm(c) / (lr * rate)
        for name, c in grams.items()
      }
    moved = {
      name: LoraPair(
        linalg.matmul(
          m.a, rate * _limited(inverses[name].b, m.a, allowed[name]).mT
        ),
        linalg.matmul(m.b, rate * inverses[name].a.mT),
      )
      for name, m in steps.items()
    }
    count = optax.safe_increment(state.count)
    return moved, InOrthonormalBasesState(count, bases, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _limited(inverse, step, allowed):
  """R^-1, scaled down if |M| is more than allowed."""
  if allowed is None:
    return inverse
  norm = jnp.sqrt(jnp.sum(jnp.square(step), axis=(1, 2)))
  allowed = allowed.astype(norm.dtype)
  too_long = norm > allowed
  scale = jnp.where(too_long, allowed / jnp.where(too_long, norm, 1), 1)
  return inverse * scale[:, None, None]


def _product_norm(grams: LoraPair):
  """|A B^T|, from tr(A^T A B^T B)."""
  square = jnp.sum(grams.a * grams.b.mT, axis=(1, 2))
  return jnp.sqrt(jnp.maximum(square, 0))
