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
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """LoRA-Muon: steps of A B^T with all singular values alike.

  With the momenta M of the raw gradients, S_A = A^T A and S_B = B^T B,

    A <- A - learning_rate / 2 (msign(M_A S_B^(-1/2)) S_B^(-1/2) + decay A)

  and so for B from the same state: each half moves A B^T by singular values
  of learning_rate / 2, and takes half of the decay of the product. It shares
  its core with LoRA-RITE, whose step without moments is sqrt(m) times larger,
  and has half of its state.

  Args:
    learning_rate: a float or a schedule, in units of singular values of A B^T.
    b1: decay of the momentum.
    nesterov: Nesterov momentum.
    max_relative_step: where A B^T is weak, as everywhere from B = 0, a step
      of A would change A by a large part of itself. In such directions it is
      damped to about this part at most; None: not at all.
    lora_scale: s of W + s A B^T; steps are divided by it.
    weight_decay: of the product A B^T, times the learning rate; each factor
      takes half.
    mask: which leaves decay; default all.
    mu_dtype: dtype of the momentum.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.
    max_consecutive_skips: bad steps in a row that are skipped before updates
      are NaN (`transforms.skip_nonfinite`); None: any.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: for a setting out of its range; at init, when no proper pairs
      are found.

  >>> import jax.numpy as jnp
  >>> params = {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}
  >>> gradients = {'lora_a': jnp.zeros((4, 1)), 'lora_b': jnp.ones((1, 2))}
  >>> tx = lora_muon(0.1)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.0177 -0.0177]]

  Notes:
    Invariant to every invertible T, if the decay is zero or unmasked. Without
    momentum (b1 = 0) and `max_relative_step`, and with twice the rate, it is
    iMuon on matrices of fixed rank (Corollary 4.1 there). Its authors' code for
    LoRA does another thing: it puts both momenta together first, as
    M_A B^T + A M_B^T.

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
  return recipe(
    transforms.on_lora_pairs(direction, layout, native=True),
    transforms.add_decayed_weights(weight_decay / 2, mask),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
