"""AltLoRA."""

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
def altlora(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  *,
  reg: float = 0.0,
  lora_scale: float = 1.0,
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """AltLoRA: projected gradient descent with momentum, factors in turns.

  In its turn a factor moves along the momentum of the projected full
  gradient, which is carried into the new span of the other factor;
  `transforms.scale_by_altlora` has the formulas. B has the even steps, A the
  odd ones. Good learning rates are of the size of the inverse curvature of
  the loss, not of Adam's.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the momentum.
    reg: added to the Gram matrices; 0: directions in which the partner is
      zero rest instead.
    lora_scale: s of W + s A B^T.
    weight_decay: decoupled, times the learning rate; of both factors, at
      every step.
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
  >>> tx = altlora(0.1, b1=0.0)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.025 -0.025]]

  Notes:
    Invariant to every invertible T for reg = 0.

  References:
    Yu et al., AltLoRA: Towards Better Gradient Approximation in Low-Rank
    Adaptation with Alternating Projections, arXiv 2505.12455.
  """
  direction = transforms.scale_by_altlora(
    b1, reg, lora_scale=lora_scale, mu_dtype=mu_dtype
  )
  return recipe(
    transforms.on_lora_pairs(direction, layout, native=True),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
