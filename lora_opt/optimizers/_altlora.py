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
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """AltLoRA: projected gradient descent with momentum, one factor at a time.

  The two factors take turns: B moves in even steps, A in odd ones. A factor
  moves along the momentum of the projected full gradient, which is carried
  over into the new span of the other factor; `transforms.scale_by_altlora` has
  the formulas. Good learning rates are of the size of the inverse curvature of
  the loss, not of the size of Adam's.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the momentum.
    reg: multiple of the identity that is added to the Gram matrices. With 0,
      a factor instead does not move in directions in which the other factor
      is zero.
    lora_scale: the scale s in W + s A B^T.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate. It
      acts on both factors at every step.
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
  >>> tx = altlora(0.1, b1=0.0)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.025 -0.025]]

  Notes:
    With reg = 0 the path of A B^T is the same for (A T, B T^-T), for every
    invertible T.

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
