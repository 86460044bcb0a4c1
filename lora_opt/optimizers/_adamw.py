"""AdamW."""

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
def adamw(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """AdamW on the LoRA leaves: the baseline, guarded like the other recipes.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
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
    An optax transformation.

  Raises:
    ValueError: if a setting is out of range; at init, if no valid pairs are
      found.

  >>> import jax.numpy as jnp
  >>> params = {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2)),
  ...           'w': jnp.ones((4, 2))}
  >>> tx = adamw(1e-3)
  >>> updates, _ = tx.update(params, tx.init(params), params)
  >>> print(updates['w'][0], updates['lora_a'][0].round(4))
  [0. 0.] [-0.001]

  References:
    Loshchilov and Hutter, Decoupled Weight Decay Regularization,
    arXiv 1711.05101.
  """
  return recipe(
    transforms.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    elementwise=True,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
