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
  weight_decay: ScalarOrSchedule = 0.0,
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

  At B = 0, S would be zero. Therefore directions in which A B^T is zero are
  treated like the strongest direction, and a pair whose A B^T is zero
  altogether is trained as by AdamW. So no warm-up is needed for safety; the
  papers' runs have 100 to 200 warm-up steps.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the square root of the second moment.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate.
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.
    refactoring: 'virtual' (as in the papers) leaves the factors as they are
      and gives Adam other gradients. 'real' transforms the factors to the
      balanced factorisation, and Adam's moments with them. For SGD both are
      the same. For Adam, the moments of 'virtual' mix gradients of different
      factorisations.
    warmup_steps: number of initial steps of plain AdamW.
    every: after the warm-up, number of steps from one preconditioned step to
      the next (the authors' `interval`), or with 'real' from one balancing to
      the next.
    blend_steps: after the warm-up, number of steps of the transition to S; see
      `transforms.precondition_by_refactoring`.
    max_spread: for 'virtual', upper limit of tr(S) tr(S^-1) / rank^2. None, as
      in the papers: no limit. Adam works elementwise, so a direction that S^-1
      makes much smaller than another drowns in it. From a factor that lacks
      directions, 1000 steps came 20 to 250 times nearer with the limit.
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
    ValueError: if a setting is out of range; for `blend_steps` with 'real',
      where gradients do not jump; at init, if no valid pairs are found.

  >>> import jax, jax.numpy as jnp
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}}
  >>> tx = reflora(1e-3)
  >>> gradients = jax.tree.map(jnp.ones_like, params)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['q']['lora_b'].round(4))
  [[-0.001 -0.001]]

  Notes:
    With SGD in place of Adam and `max_spread=None`, the path of A B^T would be
    the same for (A T, B T^-T), for every invertible T. With Adam, which works
    elementwise, it is not.

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
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  warmup_steps: int = 0,
  every: int = 1,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """RefLoRA-S: AdamW that keeps both factors of a pair at the same norm.

  Before each step, with s = |B| / |A|, A <- A sqrt(s) and B <- B / sqrt(s).
  Adam's moments are rescaled accordingly (mu_A / sqrt(s), nu_A / s, the inverse
  for B). A pair with a zero factor is left alone until the factor has moved.
  (The authors' code rescales after the step; the path of A B^T is the same.)

  Args:
    learning_rate: a float or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the square root of the second moment.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate.
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.
    warmup_steps: number of initial steps of plain AdamW.
    every: number of steps from one rescaling to the next.
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
