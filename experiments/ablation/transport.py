"""LoRA-RITE without the transport of its moments into the new bases.

LoRA-RITE keeps V and M in the coordinates of the partner's basis U. When U
turns, P = U_new^T U_old carries them over. Here either of them can be left as
it is: the same numbers then mean other directions. For that, one basis must be
chosen, since the choice no longer cancels out: the polar basis
U = F (F^T F)^(-1/2), which turns the least.
"""

from typing import Any

import jax.numpy as jnp
import optax

from lora_opt import linalg, transforms
from lora_opt.pairs import LoraPair, PairMatrices


def scale_by_rite_carrying(
  *, carry_mu: Any, carry_nu: Any, **options
) -> optax.GradientTransformationExtraArgs:
  """`transforms.scale_by_lora_rite`, made to believe that no basis turned.

  In its state, the factors of the last step are replaced by the current ones,
  so that its own transport does nothing. The moments are replaced by those for
  the current bases, carried over or not.

  Args:
    carry_mu: whether to carry M as LoRA-RITE does; a boolean, may be traced.
    carry_nu: whether to carry V and count what it loses as escaped; likewise.
    **options: options of `scale_by_lora_rite`.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.
  """
  inner = transforms.scale_by_lora_rite(**options)

  def update(updates, state, params=None, **extra_args):
    # This first call is only for the current R^-1.
    _, probe = inner.update(updates, state, params, **extra_args)
    mu, nu, escaped = {}, {}, {}
    for name in params:
      # The coordinates of A's moments belong to B, and the reverse.
      a, b = (
        _moved(
          state.mu[name][own],
          state.nu[name][own],
          state.previous[name][partner],
          params[name][partner],
          state.inverses[name][partner],
          probe.inverses[name][partner],
          carry_mu,
          carry_nu,
        )
        for own, partner in ((0, 1), (1, 0))
      )
      mu[name] = LoraPair(a[0], b[0])
      nu[name] = PairMatrices(a[1], b[1])
      old = state.escaped[name]
      escaped[name] = PairMatrices(old[0] + a[2], old[1] + b[2])
    patched = state._replace(
      previous=params,
      inverses=probe.inverses,
      mu=mu,
      nu=nu,
      escaped=escaped,
    )
    return inner.update(updates, patched, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def _moved(mu, nu, old, now, old_inverse, inverse, carry_mu, carry_nu):
  """Returns (M R^-T, V, what V lost), all for the current bases.

  Args:
    mu: (batch, dim, rank), M R_old^-T.
    nu: (batch, rank, rank), V.
    old: the partner at the last step (batch, dim', rank).
    now: the current partner.
    old_inverse: R_old^-1 of the old partner (batch, rank, rank).
    inverse: R^-1 of the current partner.
    carry_mu: whether to carry M over.
    carry_nu: whether to carry V over.
  """
  matmul = linalg.matmul
  cross = matmul(linalg.gram(old, now), inverse)  # F_old^T U
  # One LAPACK call, after the one that computed `inverse`.
  grams = jnp.concatenate([linalg.gram(old), linalg.gram(now)])
  values, vectors = linalg.eigh(linalg.after(grams, inverse))
  live = linalg.alive(values)
  root = jnp.sqrt(jnp.where(live, values, 0))
  back = jnp.where(live, 1 / jnp.where(live, root, 1), 0)
  old_root, new_root = jnp.split(linalg.from_eigen(vectors, root), 2)
  new_back = jnp.split(linalg.from_eigen(vectors, back), 2)[1]
  carried = matmul(cross, inverse.mT)
  mu = matmul(mu, jnp.where(carry_mu, carried, matmul(old_root, new_back)))
  # From the old basis, whichever it was, to the old polar one; then from the
  # new polar basis to the new one.
  left = matmul(matmul(new_root, inverse).mT, matmul(old_root, old_inverse))
  change = jnp.where(carry_nu, matmul(cross.mT, old_inverse), left)
  new = linalg.symmetrize(matmul(matmul(change, nu), change.mT))
  lost = jnp.maximum(jnp.trace(nu - new, axis1=1, axis2=2), 0)
  return mu, new, jnp.where(carry_nu, lost, 0)
