"""LoRA-Muon."""

from typing import Any

import optax

from lora_opt import pairs, transforms
from lora_opt.optimizers._recipe import (
  MAX_SKIPS,
  Mask,
  ScalarOrSchedule,
  recipe,
)
from lora_opt.optimizers._settings import checked


@checked
def lora_muon(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.95,
  *,
  nesterov: bool = True,
  max_relative_step: float | None = 0.1,
  lora_scale: float = 1.0,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """LoRA-Muon: steps of A B^T whose singular values are all equal.

  With the momenta M of the raw gradients, S_A = A^T A, S_B = B^T B and
  msign(U S V^T) = U V^T,

    A <- A - learning_rate / 2 (msign(M_A S_B^(-1/2)) S_B^(-1/2) + decay A)

  and likewise for B, from the same state. Each of the two steps moves A B^T by
  a matrix with singular values learning_rate / 2, and takes half of the decay
  of the product. LoRA-Muon shares its core with LoRA-RITE, whose step without
  moments is sqrt(m) times larger, and has half of LoRA-RITE's state.

  Args:
    learning_rate: a float or a schedule, in units of singular values of A B^T.
    b1: decay of the momentum.
    nesterov: Nesterov momentum.
    max_relative_step: the largest relative change of A in one step. In
      directions in which A B^T is weak, as in all of them when B starts at
      zero, a step would change A by a large fraction of itself. There the
      step of A is damped to at most about this fraction. None: no damping.
    lora_scale: the scale s in W + s A B^T. Steps are divided by it.
    weight_decay: decay of the product A B^T, multiplied by the learning rate.
      Each factor takes half.
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.
    mu_dtype: dtype of the momentum.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`.
    other: transformation for the leaves outside the pairs. Default: these
      leaves get zero updates.
    max_consecutive_skips: number of bad steps in a row that are skipped
      before updates become NaN (see `transforms.skip_nonfinite`). None: no
      limit.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: if a setting is out of range; at init, if no valid pairs are
      found.

  >>> import jax.numpy as jnp
  >>> params = {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}
  >>> gradients = {'lora_a': jnp.zeros((4, 1)), 'lora_b': jnp.ones((1, 2))}
  >>> tx = lora_muon(0.1)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.0177 -0.0177]]

  Notes:
    The path of A B^T is the same for (A T, B T^-T), for every invertible T, if
    the decay is zero or unmasked. Without momentum (b1 = 0) and without
    `max_relative_step`, and with twice the learning rate, this is iMuon on
    matrices of fixed rank (Corollary 4.1 of Li et al.). The code of its authors
    for LoRA differs: it first combines both momenta, as M_A B^T + A M_B^T.

  References:
    Li et al., Intrinsic Muon: Spectral Optimization on Riemannian Matrix
    Manifolds, arXiv 2605.09238.
    LoRA-Muon, arXiv 2606.12921. Jordan et al., Muon, 2024.
  """
  direction = transforms.scale_by_lora_muon(
    b1,
    nesterov=nesterov,
    lora_scale=lora_scale,
    max_relative_step=max_relative_step,
    learning_rate=learning_rate,
    mu_dtype=mu_dtype,
  )
  half = (
    (lambda count: weight_decay(count) / 2)
    if callable(weight_decay)
    else weight_decay / 2
  )
  return recipe(
    transforms.on_lora_pairs(direction, layout, native=True),
    transforms.add_decayed_weights(half, mask),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
