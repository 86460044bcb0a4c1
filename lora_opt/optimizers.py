"""The recipes: complete optimizers, each an optax chain.

They take any parameter tree in which the LoRA pairs can be found
(`lora_opt.pairs`), train the pairs and nothing else: leaves outside get zero
updates, or go to the transformation passed as `other`.

All of them share what `_recipe` adds: a step whose LoRA gradients contain NaN
or inf, or overflow when squared, does not happen (zero updates, unchanged
state; see `transforms.skip_nonfinite`). Work is done in float32 or wider, and
updates come back in the dtype of the gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from lora_opt import pairs, transforms

ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]
# Which leaves decay: a function from parameters to a tree of booleans. (A
# tree does not fit, since leaves outside pairs are hidden from the chain.)
Mask = Callable[[Any], Any] | None


def _recipe(
  *stages: optax.GradientTransformation,
  layout: pairs.Layouts,
  other: optax.GradientTransformation | None,
) -> optax.GradientTransformationExtraArgs:
  """A chain for the LoRA leaves; `other` for the rest."""
  return optax.partition(
    {
      'lora': transforms.skip_nonfinite(optax.chain(*stages)),
      'other': optax.set_to_zero() if other is None else other,
    },
    lambda tree: pairs.lora_labels(tree, layout),
  )


def lora_rite(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  weight_decay: float = 0.0,
  mask: Mask = None,
  clip_norm: float | None = 1.0,
  skip_rms: float | None = None,
  cap_rms: float | None = None,
  escaped_mass: bool = False,
  rebalance: bool = False,
  max_relative_step: float | None = 0.1,
  mean_square: bool = True,
  lora_scale: float = 1.0,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  """LoRA-RITE: matrix-adaptive steps, invariant to the factorisation.

  With A = U_A R_A, B = U_B R_B (orthonormal U) and g = G_A R_B^-1 the
  unmagnified gradient of A (m, r),

    V <- b2' P V P^T + (1 - b2') g^T g / m,       P = U_B^T U_B,old
    M <- b1' M P^T + (1 - b1') g V^(-1/2)
    A <- A - learning_rate * (M R_B^-T + weight_decay * A)

  and the same for B with the roles exchanged, from the same gradients. The
  trajectory of A B^T is the same for (A T, B T^-T), for every invertible T.
  Good learning rates are 20 to 100 times those of Adam.

  Rank deficiency (B = 0, gradients of low rank, zero-padded ranks): dead
  directions rest, with the one relative cut-off of `lora_opt.linalg`, so
  nothing turns into NaN and nothing is amplified from rounding.

  Cold start: at B = 0 only B moves in the first step. Then B is of the size
  of the learning rate and the step of A, divided by it, would be of the size
  of A itself, whatever the learning rate. `max_relative_step` keeps a step of
  A from changing more than this part of A B^T. B is free.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the momentum M.
    b2: decay of the second moment V.
    eps: added to the square root of V's eigenvalues.
    weight_decay: decoupled, times the learning rate.
    mask: which leaves decay; default all.
    clip_norm: clip the global norm, over all pairs, of the unmagnified
      gradients; None for none. Clipping the raw gradients in front of this
      optimizer would break the invariance.
    skip_rms: a factor whose unmagnified gradient has a larger root mean
      square takes it as zero. The authors' code uses 1; default None, since
      a large loss scale then stops training silently.
    cap_rms: largest root mean square of a factor's M; None for any.
    escaped_mass: add what V loses when the basis turns (always in the paper,
      off by default in the authors' code).
    rebalance: give both factors the same norm after each step. It keeps
      A B^T, and so the trajectory.
    max_relative_step: see above; None is the paper's rule.
    mean_square: V averages over m, as in the authors' code; False sums, as in
      the paper, and the learning rate is then sqrt(m) times larger.
    lora_scale: s = alpha / rank of W + s A B^T. Steps are divided by it, so
      that a learning rate transfers over alpha and rank; 1 is the paper.
    mu_dtype: dtype of the momentum; default float32 or wider.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: at init, when no proper pairs are found.

  >>> import jax.numpy as jnp
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}}
  >>> tx = lora_rite(1e-3)
  >>> updates, state = tx.update(params, tx.init(params), params)
  >>> optax.apply_updates(params, updates)['q']['lora_a'].shape
  (4, 1)

  Notes:
    State: two factor-sized arrays per factor, as for Adam, and two r x r
    matrices per pair. float32 bases are good to a condition of 1e4; a weaker
    direction of a factor counts as dead.

  References:
    Yen et al., LoRA Done RITE: Robust Invariant Transformation Equilibration
    for LoRA Optimization, arXiv 2410.20625.
  """
  direction = transforms.scale_by_lora_rite(
    b1,
    b2,
    eps,
    clip_norm=clip_norm,
    skip_rms=skip_rms,
    cap_rms=cap_rms,
    escaped_mass=escaped_mass,
    mean_square=mean_square,
    lora_scale=lora_scale,
    max_relative_step=max_relative_step,
    learning_rate=learning_rate,
    mu_dtype=mu_dtype,
  )
  stages = [
    transforms.on_lora_pairs(direction, layout, native=True),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  ]
  if rebalance:
    stages.append(
      transforms.on_lora_pairs(
        transforms.rebalance_norms(), layout, elementwise=True
      )
    )
  return _recipe(*stages, layout=layout, other=other)


def reflora(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Mask = None,
  warmup_steps: int = 0,
  every: int = 1,
  blend_steps: int = 0,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
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
    warmup_steps: steps of plain AdamW first.
    every: then precondition one step in so many (as the authors' `interval`).
    blend_steps: after warm-up, go over to S in so many steps; see
      `transforms.precondition_by_refactoring`.
    mu_dtype: dtype of the first moment.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: at init, when no proper pairs are found.

  >>> import jax.numpy as jnp
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
  refactoring = transforms.precondition_by_refactoring(
    warmup_steps=warmup_steps, every=every, blend_steps=blend_steps
  )
  return _recipe(
    transforms.on_lora_pairs(refactoring, layout),
    optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
    layout=layout,
    other=other,
  )


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
) -> optax.GradientTransformationExtraArgs:
  """RefLoRA-S: AdamW, and both factors of a pair keep the same norm.

  After each step, s = |B| / |A|: A <- A sqrt(s), B <- B / sqrt(s), and Adam's
  moments go with them (mu_A / sqrt(s), nu_A / s, the inverse for B). A pair
  with a zero factor is left alone until the factor has moved.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the square root of the second moment.
    weight_decay: decoupled, times the learning rate.
    mask: which factors decay, a function of the pairs; default all.
    warmup_steps: steps of plain AdamW first.
    every: steps from one rescaling to the next.
    mu_dtype: dtype of the first moment.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: at init, when no proper pairs are found.

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
    optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )
  refactored = transforms.refactor_by_norms(
    inner, warmup_steps=warmup_steps, every=every
  )
  return _recipe(
    transforms.on_lora_pairs(refactored, layout, elementwise=True),
    layout=layout,
    other=other,
  )


def lora_plus(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  lr_ratio: float = 4.0,
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  """LoRA+: AdamW with a larger learning rate for the up factor B.

  A moves with `learning_rate`, B with `lr_ratio * learning_rate`, decay
  included. B is the factor that starts at zero, as the layout says.

  The paper's ratio of 16 was found with the roles of initialisation exchanged
  (A zero, B random). With the usual start, random A and zero B, which every
  layout here describes, 4 to 8 (Llama: 2 to 4) were better: hence 4.

  Args:
    learning_rate: of A; a float or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the square root of the second moment.
    lr_ratio: learning rate of B over that of A.
    weight_decay: decoupled, times each factor's own learning rate.
    mask: which leaves decay; default all.
    mu_dtype: dtype of the first moment.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: at init, when no proper pairs are found.

  >>> import jax.numpy as jnp
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}}
  >>> tx = lora_plus(1e-3, lr_ratio=8.0)
  >>> gradients = jax.tree.map(jnp.ones_like, params)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['q']['lora_b'].round(4))
  [[-0.008 -0.008]]

  References:
    Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models,
    arXiv 2402.12354.
  """
  ratio = transforms.scale_by_lora_plus(lr_ratio)
  return _recipe(
    optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    optax.add_decayed_weights(weight_decay, mask),
    transforms.on_lora_pairs(ratio, layout, elementwise=True),
    optax.scale_by_learning_rate(learning_rate),
    layout=layout,
    other=other,
  )


def adamw(
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
) -> optax.GradientTransformationExtraArgs:
  """AdamW on LoRA leaves: the baseline, with the safety of the others.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    weight_decay: decoupled, times the learning rate.
    mask: which leaves decay; default all.
    mu_dtype: dtype of the first moment.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.

  Returns:
    An optax transformation.

  Raises:
    ValueError: at init, when no proper pairs are found.

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
  return _recipe(
    optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
    layout=layout,
    other=other,
  )
