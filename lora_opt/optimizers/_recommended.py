"""The recipe that did best in this project's own studies."""

import numbers
from typing import Any

import optax

from lora_opt import pairs
from lora_opt.optimizers._polora import polora
from lora_opt.optimizers._recipe import MAX_SKIPS, Mask, ScalarOrSchedule
from lora_opt.optimizers._settings import checked

WARMUP = 0.1  # fraction of the run
B1 = 0.8
DAMPING = 0.1


@checked
def recommended(
  learning_rate: ScalarOrSchedule,
  steps: int | None = None,
  *,
  lora_scale: float,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """PoLoRA with a rate that stays when alpha, rank or width change.

  It is `lora_opt.polora` with `half_each`, `lora_scale`, a b1 of 0.8 and a
  damping of 0.1. The page *Which optimizer and learning rate?* says how it
  compares with a tuned AdamW, and where it does not gain.

  Args:
    learning_rate: with `steps`, the peak of a linear warm-up for a tenth of the
      steps and a cosine that ends at zero; else a schedule. The rate is the
      length of a step of W in the spectral norm. Such steps do not shrink by
      themselves, so it must decay, or the factors be averaged
      (`lora_opt.averaged`).
    steps: the length of the run in steps of the optimizer.
    lora_scale: the scale s in W + s A B^T, usually alpha / r. It has no
      default, since the rate has no meaning without it.
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
    An optax transformation; `update` needs `params`. The state is half the size
    of Adam's, plus m + n numbers per pair.

  Raises:
    ValueError: if a setting is out of range, a number comes without steps, or
      a schedule with them; at init, if no valid pairs are found.

  >>> import jax, jax.numpy as jnp
  >>> params = {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}
  >>> tx = recommended(0.1, steps=10, lora_scale=2.0)
  >>> gradients = jax.tree.map(jnp.ones_like, params)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.0044 -0.0044]]

  References:
    Ghosh, Parshakova and Gower, PoLoRA: A Preconditioned Orthogonalized LoRA
    Optimizer, arXiv 2607.17620. The division of a step between the factors is
    that of LoRA-Muon, arXiv 2606.12921.
  """
  if steps is not None:
    learning_rate = _warmup_cosine(learning_rate, steps)
  elif isinstance(learning_rate, numbers.Real):
    raise ValueError(
      f'recommended: learning_rate={learning_rate:g} would never decay: pass '
      'steps= too, the length of the run, or a schedule (a constant one with '
      'lora_opt.averaged)'
    )
  return polora(
    learning_rate,
    b1=B1,
    damping=DAMPING,
    lora_scale=lora_scale,
    half_each=True,
    weight_decay=weight_decay,
    mask=mask,
    mu_dtype=mu_dtype,
    layout=layout,
    other=other,
    max_consecutive_skips=max_consecutive_skips,
  )


def _warmup_cosine(peak: ScalarOrSchedule, steps: int) -> optax.Schedule:
  if callable(peak):
    raise ValueError(
      f'recommended: learning_rate is a schedule, so steps={steps} is not '
      'needed: pass one of both'
    )
  if not isinstance(steps, numbers.Integral):
    raise ValueError(f'recommended: steps={steps!r} must be a whole number')
  warmup = max(1, round(WARMUP * steps))
  return optax.warmup_cosine_decay_schedule(
    # Not 0, so that the first step changes something.
    init_value=peak / (warmup + 1),
    peak_value=peak,
    warmup_steps=warmup,
    decay_steps=max(steps, warmup + 1),
  )
