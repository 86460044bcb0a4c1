"""RefLoRA and RefLoRA-S."""

from typing import Any, Literal

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
def reflora(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Mask = None,
  refactoring: Literal['virtual', 'real'] = 'virtual',
  warmup_steps: int = 0,
  every: int = 1,
  blend_steps: int = 0,
  max_spread: float | None = 16.0,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """RefLoRA: AdamW on gradients of the balanced factorisation.

  S = (A^T A)^-1 # (B^T B), the matrix geometric mean, solves
  S A^T A S = B^T B. AdamW receives G_A S^-1 and G_B S.

  At B = 0, S would be zero: directions in which A B^T is zero are treated as
  the strongest one, and a pair that is zero altogether is trained as by
  AdamW. So no warm-up is needed for safety; the papers' runs use 100 to 200
  steps of it.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the square root of the second moment.
    weight_decay: decoupled, times the learning rate.
    mask: which leaves decay; default all.
    refactoring: 'virtual' (the papers') leaves the factors where they are and
      gives Adam other gradients; 'real' carries the factors over to the
      balanced factorisation, and Adam's moments with them. Both are the same
      for SGD; for Adam the moments of 'virtual' mix gradients of different
      factorisations.
    warmup_steps: steps of plain AdamW first.
    every: then precondition one step in so many (as the authors' `interval`);
      'real': balance so often.
    blend_steps: after warm-up, go over to S in so many steps; see
      `transforms.precondition_by_refactoring`.
    max_spread: of S in 'virtual': tr(S) tr(S^-1) / rank^2 at most; None, the
      papers': any. Adam works by elements, so a direction that S^-1 makes
      much smaller than another drowns in it: from a factor that lacks
      directions, 1000 steps came 20 to 250 times nearer with the bound.
    mu_dtype: dtype of the first moment.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.
    max_consecutive_skips: bad steps in a row that are skipped before updates
      are NaN (`transforms.skip_nonfinite`); None: any.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: at init, when no proper pairs are found; for an unknown
      `refactoring`, and for `blend_steps` with 'real', which has no jump.

  >>> import jax, jax.numpy as jnp
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}}
  >>> tx = reflora(1e-3)
  >>> gradients = jax.tree.map(jnp.ones_like, params)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['q']['lora_b'].round(4))
  [[-0.001 -0.001]]

  Notes:
    Invariant (to every invertible T) in front of SGD, not in front of Adam,
    which works by elements.

  References:
    Zhang et al., RefLoRA: Refactored Low-Rank Adaptation for Efficient
    Fine-Tuning of Large Models, arXiv 2505.18877.
  """
  if refactoring not in ('virtual', 'real'):
    raise ValueError(f"refactoring={refactoring!r}: 'virtual' or 'real'?")
  adam = (
    transforms.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
  )
  if refactoring == 'real':
    if isinstance(blend_steps, int) and blend_steps:
      raise ValueError(
        f"blend_steps={blend_steps} is for refactoring='virtual'; leave it 0."
      )
    real = transforms.refactor_by_balance(
      optax.chain(*adam), layout, warmup_steps=warmup_steps, every=every
    )
    return recipe(
      real,
      layout=layout,
      other=other,
      max_skips=max_consecutive_skips,
      learning_rate=learning_rate,
    )
  virtual = transforms.precondition_by_refactoring(
    warmup_steps=warmup_steps,
    every=every,
    blend_steps=blend_steps,
    max_spread=max_spread,
  )
  return recipe(
    transforms.on_lora_pairs(virtual, layout, native=True),
    *adam,
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )


@checked
def reflora_s(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Mask = None,
  warmup_steps: int = 0,
  every: int = 1,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """RefLoRA-S: AdamW, and both factors of a pair keep the same norm.

  Before each step, s = |B| / |A|: A <- A sqrt(s), B <- B / sqrt(s), and Adam's
  moments go with them (mu_A / sqrt(s), nu_A / s, the inverse for B). A pair
  with a zero factor is left alone until the factor has moved. (The authors'
  code rescales after the step: the same path of A B^T.)

  Args:
    learning_rate: a float or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the square root of the second moment.
    weight_decay: decoupled, times the learning rate.
    mask: which leaves decay; default all.
    warmup_steps: steps of plain AdamW first.
    every: steps from one rescaling to the next.
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
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.ones((1, 4))}}
  >>> tx = reflora_s(1e-3)
  >>> updates, state = tx.update(params, tx.init(params), params)
  >>> print(updates['q']['lora_b'].round(4))
  [[-0.001 -0.001 -0.001 -0.001]]

  References:
    Zhang et al., RefLoRA, arXiv 2505.18877.
  """
  inner = optax.chain(
    transforms.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
  )
  refactored = transforms.refactor_by_norms(
    inner, layout, warmup_steps=warmup_steps, every=every
  )
  return recipe(
    refactored,
    layout=layout,
    other=other,
    elementwise=True,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
