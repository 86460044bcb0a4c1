"""Known optimizers, factor by factor: what LoRA methods must beat."""

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
def lamb(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """LAMB: Adam's direction, with the norm of the factor it moves.

  Args:
    learning_rate: a float or a schedule: the relative change of a factor.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
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
  >>> tx = lamb(1e-3)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.001 -0.001]]

  References:
    You et al., Large Batch Optimization for Deep Learning: Training BERT in
    76 minutes, arXiv 1904.00962.
  """
  trust = transforms.scale_by_trust_ratio_per_matrix()
  return recipe(
    transforms.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.on_lora_pairs(trust, layout, elementwise=True),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )


@checked
def muon(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.95,
  *,
  nesterov: bool = True,
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """Muon on each factor, as if it were a weight matrix of its own.

  Args:
    learning_rate: a float or a schedule; steps have a root mean square of
      about 0.2 of it, as usual for Adam.
    b1: decay of the momentum.
    nesterov: Nesterov momentum.
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
  >>> tx = muon(1e-2)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.0014 -0.0014]]

  References:
    Jordan et al., Muon: An optimizer for hidden layers in neural networks,
    2024; the step is that of `optax.contrib.scale_by_muon`.
  """
  direction = transforms.scale_by_muon_per_matrix(
    b1, nesterov=nesterov, mu_dtype=mu_dtype
  )
  return recipe(
    transforms.on_lora_pairs(direction, layout),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )


@checked
def shampoo(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """One-sided Shampoo on each factor: an r x r preconditioner.

  `transforms.scale_by_one_sided_shampoo` says what of Shampoo is left out.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the momentum.
    b2: decay of the preconditioner.
    eps: added to the square root of its eigenvalues.
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
  >>> tx = shampoo(1e-3)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.001 -0.001]]

  References:
    Gupta et al., Shampoo, arXiv 1802.09568.
  """
  direction = transforms.scale_by_one_sided_shampoo(
    b1, b2, eps, mu_dtype=mu_dtype
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
