"""ScaledGD and ScaledAdamW."""

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
def scaled_gd(
  learning_rate: ScalarOrSchedule,
  momentum: float | None = None,
  *,
  nesterov: bool = False,
  reg: float = 1e-2,
  lora_scale: float = 1.0,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """ScaledGD: gradient descent in the Riemannian metric of A B^T.

  A moves along G_A (B^T B + reg I)^-1 / s^2 and B along
  G_B (A^T A + reg I)^-1 / s^2. With reg = 0 a step depends only on the product
  A B^T. Good learning rates are of the size of the inverse curvature of the
  loss, not of the size of Adam's.

  Args:
    learning_rate: a float or a schedule.
    momentum: decay of a momentum of the scaled gradients. None: no momentum.
    nesterov: Nesterov momentum.
    reg: multiple of the identity that is added to the Gram matrices. With 0,
      a factor instead does not move in directions in which the other factor
      is zero.
    lora_scale: the scale s in W + s A B^T.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate.
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
  >>> tx = scaled_gd(0.1, reg=0.0)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.025 -0.025]]

  Notes:
    Without momentum there is no state. With reg = 0 the path of A B^T is the
    same for (A T, B T^-T), for every invertible T.

  References:
    Zhang and Pilanci, Riemannian Preconditioned LoRA for Fine-Tuning
    Foundation Models, arXiv 2402.02347.
  """
  direction = transforms.precondition_by_grams(reg, lora_scale=lora_scale)
  if momentum is not None:
    # Inside `on_lora_pairs`, where everything is float32 or wider.
    direction = optax.chain(
      direction, optax.trace(momentum, nesterov, mu_dtype)
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


@checked
def scaled_adamw(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  reg: float = 1e-2,
  lora_scale: float = 1.0,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """ScaledAdamW: AdamW on gradients in the Riemannian metric of A B^T.

  AdamW receives G_A (B^T B + reg I)^-1 / s^2 and G_B (A^T A + reg I)^-1 / s^2.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    reg: multiple of the identity that is added to the Gram matrices. With 0,
      a factor instead does not move in directions in which the other factor
      is zero.
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
  >>> tx = scaled_adamw(1e-3)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.001 -0.001]]

  Notes:
    Adam works elementwise, so the path of A B^T depends on the factorisation,
    whatever the value of reg.

  References:
    Zhang and Pilanci, arXiv 2402.02347.
  """
  return recipe(
    transforms.on_lora_pairs(
      transforms.precondition_by_grams(reg, lora_scale=lora_scale),
      layout,
      native=True,
    ),
    transforms.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
