"""LoRA-RITE."""

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
def lora_rite(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  clip_norm: float | None = 1.0,
  skip_rms: float | None = None,
  cap_rms: float | None = None,
  escaped_mass: Literal['trace', 'eigenvalues'] | None = 'trace',
  rtol: float = 1e-3,
  rebalance: bool = False,
  max_relative_step: float | None = 0.3,
  mean_square: bool = True,
  lora_scale: float = 1.0,
  width_scaling: bool = False,
  low_memory: bool = False,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """LoRA-RITE: matrix-adaptive steps, invariant to the factorisation.

  With A = U_A R_A, B = U_B R_B (orthonormal U) and g = G_A R_B^-1 the
  unmagnified gradient of A (m, r),

    V <- b2' P V P^T + (1 - b2') g^T g / m,       P = U_B^T U_B,old
    M <- b1' M P^T + (1 - b1') g V^(-1/2)
    A <- A - learning_rate * (M R_B^-T + weight_decay * A)

  and likewise for B with the roles exchanged, from the same gradients. The
  trajectory of A B^T is the same for (A T, B T^-T), for every invertible T.
  The paper's best learning rates are 20 to 100 times Adam's. On a small
  encoder (experiments/minilm_glue) a third of Adam's rate worked, and Adam's
  own rate did not: sweep in both directions.

  Rank deficiency (B = 0, gradients of low rank, zero-padded ranks): directions
  below the relative cut-offs of `lora_opt.linalg` and `rtol` are dead and get
  no step. So nothing becomes NaN, and no rounding error is amplified.

  Weak directions: the step of A is divided by B. At B = 0 only B moves in the
  first step. After it, B is of the size of the learning rate, and the step of
  A, divided by B, is of the size of A itself, whatever the learning rate. The
  same happens later in each direction in which A B^T is weak, and the
  second-order term of A B^T can then grow without bound. `max_relative_step`
  damps A in such directions until B has grown there: the step of A is
  multiplied by W = H (H + size^2 I)^-1, where the eigenvalues of H are the
  squared singular values of A B^T and
  size = learning_rate sqrt(m) / (2 max_relative_step). W depends on A B^T
  alone, so the method stays invariant. B is never damped.

  Args:
    learning_rate: a float or a schedule.
    b1: decay of the momentum M.
    b2: decay of the second moment V.
    eps: added to the square root of V's eigenvalues.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate.
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.
    clip_norm: clip the global norm of the unmagnified gradients, over all
      pairs, to this value. None: no clipping. Clipping the raw gradients
      before this optimizer would break the invariance.
    skip_rms: if the unmagnified gradient of a factor has a larger root mean
      square than this, it is taken as zero. The authors' code uses 1. The
      default is None, since with 1 a large loss scale stops training silently.
    cap_rms: upper limit of the root mean square of a factor's M. None: no
      limit.
    escaped_mass: add back what V loses when the basis turns, so that turning
      never shrinks V. 'eigenvalues' is the paper's rule, 'trace' an upper bound
      of it that needs no eigenvalues, and None, the default of the authors'
      code, adds nothing. With None, training on a target of low rank diverges
      after it has converged.
    rtol: a direction in which the root of V is smaller than this fraction of
      its largest takes no step. With 0, only the cut-off of `lora_opt.linalg`
      applies.
    rebalance: give both factors the same norm after each step. This keeps
      A B^T, and so the trajectory.
    max_relative_step: see above. None, as in the paper: no damping.
    mean_square: if True, V averages over m, as in the authors' code. If False,
      V sums, as in the paper, and the learning rate is then sqrt(m) times
      larger.
    lora_scale: the scale s = alpha / rank in W + s A B^T. Steps are divided by
      it, and eps, clip_norm and skip_rms refer to gradients of W, which are s
      times smaller than those of A B^T. So the path of s A B^T is the same for
      every alpha, and a learning rate transfers across ranks. The paper has 1.
    width_scaling: multiply steps by sqrt(fan_out / fan_in) and, if
      `mean_square`, divide them by sqrt(m), so that a learning rate transfers
      across widths: the singular values of a step of A B^T are then of the size
      of the learning rate times sqrt(fan_out / fan_in), as in the maximal
      update parametrisation.
    low_memory: keep no copy of the factors of the last step, which makes the
      state half the size of Adam's; they are computed from the momentum. Only
      for trainers that apply the updates unchanged: nothing may scale, average
      or delay them, or move the factors in another way. In float32, training
      from an A that lacks rank may sometimes be slower than with the copy.
    mu_dtype: dtype of the momentum; default float32 or wider.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`.
    other: transformation for the leaves outside the pairs. Default: these
      leaves get zero updates.
    max_consecutive_skips: number of bad steps in a row that are skipped
      before updates become NaN (see `transforms.skip_nonfinite`). None: no
      limit.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: if a setting is out of range; for `low_memory` with `mask` or
      `rebalance`, which change how the factors move; at init, if no valid pairs
      are found.

  >>> import jax.numpy as jnp
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}}
  >>> tx = lora_rite(1e-3)
  >>> updates, state = tx.update(params, tx.init(params), params)
  >>> optax.apply_updates(params, updates)['q']['lora_a'].shape
  (4, 1)

  Notes:
    State: two factor-sized arrays per factor, as for Adam (`low_memory`: one),
    and two r x r matrices per factor. In float32 the bases are accurate up to
    a condition of 1e4; a weaker direction of a factor counts as dead.

  References:
    Yen et al., LoRA Done RITE: Robust Invariant Transformation Equilibration
    for LoRA Optimization, arXiv 2410.20625.
  """
  options = {
    'clip_norm': clip_norm,
    'skip_rms': skip_rms,
    'cap_rms': cap_rms,
    'escaped_mass': escaped_mass,
    'rtol': rtol,
    'mean_square': mean_square,
    'lora_scale': lora_scale,
    'width_scaling': width_scaling,
    'max_relative_step': max_relative_step,
    'mu_dtype': mu_dtype,
  }
  if low_memory:
    if mask is not None or rebalance:
      raise ValueError(
        'lora_rite: low_memory finds the last factors from its own step; '
        'mask and rebalance change them otherwise. Drop one of them.'
      )
    step = transforms.step_by_lora_rite(
      learning_rate, b1, b2, eps, weight_decay=weight_decay, **options
    )
    return recipe(
      transforms.on_lora_pairs(step, layout, native=True),
      layout=layout,
      other=other,
      max_skips=max_consecutive_skips,
      reports=True,
      learning_rate=learning_rate,
    )
  direction = transforms.scale_by_lora_rite(
    b1, b2, eps, learning_rate=learning_rate, **options
  )
  stages = [
    transforms.on_lora_pairs(direction, layout, native=True),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
  ]
  if rebalance:
    stages.append(
      transforms.on_lora_pairs(
        transforms.rebalance_norms(), layout, elementwise=True
      )
    )
  return recipe(
    *stages,
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    reports=True,
    learning_rate=learning_rate,
  )
