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
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """ScaledGD: gradient descent in the Riemannian metric of A B^T.

  A moves along G_A (B^T B + reg I)^-1 / s^2 and B along
  G_B (A^T A + reg I)^-1 / s^2. With reg = 0 a step depends on the product
  A B^T alone. Good learning rates are of the size of the inverse curvature of
  the loss, not of Adam's.

  Args:
    learning_rate: a float or a schedule.
    momentum: decay of a momentum of the scaled gradients; None: none.
    nesterov: Nesterov momentum.
    reg: added to the Gram matrices; 0: directions in which the partner is
      zero rest instead.
    lora_scale: s of W + s A B^T.
    weight_decay: decoupled, times the learning rate.
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
  >>> tx = scaled_gd(0.1, reg=0.0)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.025 -0.025]]

  Notes:
    No state without momentum. Invariant to every invertible T for reg = 0.

  References:
    Zhang and Pilanci, Riemannian Preconditioned LoRA for Fine-Tuning
    Foundation Models, arXiv 2402.02347.
  """
  direction = transforms.precondition_by_grams(reg, lora_scale=lora_scale)
  if momentum is not None:
    # Among pairs, where everything is float32 or wider.
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
  weight_decay: float = 0.0,
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
    reg: added to the Gram matrices; 0: directions in which the partner is
      zero rest instead.
    lora_scale: s of W + s A B^T.
    weight_decay: decoupled, times the learning rate.
    mask: which leaves decay; default all.
    mu_dtype: dtype of the first moment.
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
  >>> tx = scaled_adamw(1e-3)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.001 -0.001]]

  Notes:
    Adam works by elements, so this is not invariant, whatever reg.

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
