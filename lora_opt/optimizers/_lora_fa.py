"""LoRA-FA."""

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
def lora_fa(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  lora_scale: float = 1.0,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """LoRA-FA: freezes A and moves B along the projected full gradient.

  AdamW receives G_B (A^T A)^-1 / s^2, the matrix D for which s A D^T is
  closest to the full gradient. A gets zero updates and has no state.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    lora_scale: the scale s in W + s A B^T.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate.
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.
    mu_dtype: dtype of the first moment.
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
  >>> tx = lora_fa(1e-3)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.001 -0.001]]

  Notes:
    State: Adam's, for B only.

  References:
    Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large
    Language Models Fine-tuning, arXiv 2308.03303.
  """
  adam = optax.chain(
    transforms.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
  )
  return recipe(
    transforms.on_lora_pairs(
      transforms.precondition_by_grams(0.0, lora_scale=lora_scale, factor='b'),
      layout,
      native=True,
    ),
    optax.partition(
      {'a': optax.set_to_zero(), 'b': adam},
      lambda tree: pairs.factor_labels(tree, layout),
    ),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
