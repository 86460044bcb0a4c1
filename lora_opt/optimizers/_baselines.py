"""Standard optimizers applied to each factor: baselines for LoRA methods."""

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
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """LAMB: Adam's direction, scaled to the norm of each factor.

  Args:
    learning_rate: a float or a schedule; the relative change of a factor in
      one step.
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
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: if a setting is out of range; at init, if no valid pairs are
      found.

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
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """Muon on each factor, as if the factor were a weight matrix.

  Args:
    learning_rate: a float or a schedule. The root mean square of a step is
      about 0.2 times the learning rate, as is usual for Adam.
    b1: decay of the momentum.
    nesterov: Nesterov momentum.
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
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """One-sided Shampoo on each factor, with an r x r preconditioner.

  `transforms.scale_by_one_sided_shampoo` describes which part of Shampoo is
  left out.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the momentum.
    b2: decay of the preconditioner.
    eps: added to the square root of the eigenvalues of the preconditioner.
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
