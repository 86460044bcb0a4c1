"""Work on the directions of a factor, whatever its magnitude."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.pairs import LoraPair, PairMatrices


class InOrthonormalBasesState(NamedTuple):
  """State of `in_orthonormal_bases`."""

  bases: Any  # tree of LoraPair: U of each factor at the last step
  inner_state: Any


def in_orthonormal_bases(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Shows `inner` the gradients that do not depend on the factorisation.

  A = U_A R_A and B = U_B R_B, with orthonormal columns in U. The
  *unmagnified* gradients G_A R_B^-1 = G U_B and G_B R_A^-1 = G^T U_A, with G
  the gradient of the whole matrix, are the same for (A T, B T^-T), up to a
  rotation. `inner` makes steps M of them; A moves by M_A R_B^-T, so that
  delta_w moves by M_A U_B^T (and so for B). Any basis gives the same step.

  `inner.update` receives as extra arguments
    basis_change: {name: PairMatrices}, P = U^T U_old of the *other* factor,
      which takes what was carried along to the new basis, as M P^T.
    delta_w_norm: {name: (batch,)}, the Frobenius norm of A B^T.

  Dead directions (`linalg.orthonormal_bases`) have no gradient and no step;
  where B is zero A rests, and B starts to move alone.

  Args:
    inner: a transformation over pairs (see `on_lora_pairs`).

  Returns:
    A transformation over pairs.

  References:
    Yen et al., LoRA Done RITE, arXiv 2410.20625.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return InOrthonormalBasesState(
      bases=jax.tree.map(jnp.zeros_like, params), inner_state=inner.init(params)
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
      delta_w_norm={name: _product_norm(c) for name, c in grams.items()},
      **extra_args,
    )
    moved = {
      name: LoraPair(
        linalg.matmul(m.a, inverses[name].b.mT),
        linalg.matmul(m.b, inverses[name].a.mT),
      )
      for name, m in steps.items()
    }
    return moved, InOrthonormalBasesState(bases, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _product_norm(grams: LoraPair):
  """|A B^T|, from tr(A^T A B^T B)."""
  square = jnp.sum(grams.a * grams.b.mT, axis=(1, 2))
  return jnp.sqrt(jnp.maximum(square, 0))
