"""Rebalancing around any optimizer."""

import optax

from lora_opt import pairs, transforms
from lora_opt.optimizers._recipe import MAX_SKIPS, recipe
from lora_opt.optimizers._settings import checked


@checked
def balanced(
  inner: optax.GradientTransformation,
  *,
  warmup_steps: int = 0,
  every: int = 1,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """Any optimizer, on factors kept balanced: A^T A = B^T B.

  Before a step of `inner` the pair becomes (A P, B P^-T), the same A B^T, and
  the gradients and moments of Adam and momentum found in the state of `inner`
  move along; `transforms.refactor_by_balance` has the formulas.

  Args:
    inner: a complete optimizer, learning rate included; it sees LoRA leaves
      alone. Its moments must be of the gradients as they come: those of
      `scaled_adamw`, `lora_pro` or `scaled_gd` with momentum are of what they
      made of them, and would be moved wrongly; so would the largest elements
      that `optax.adamax` keeps where Adam has squares.
    warmup_steps: nothing is done before so many steps.
    every: steps from one balancing to the next.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.
    max_consecutive_skips: bad steps in a row that are skipped before updates
      are NaN (`transforms.skip_nonfinite`); None: any.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: at init, when no proper pairs are found, or the state of
      `inner` has more than moments of Adam and momentum (but that of LoRA-RITE
      and AltLoRA, which find their way by themselves).

  >>> import jax.numpy as jnp
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.ones((1, 1))}}
  >>> tx = balanced(optax.sgd(0.0))
  >>> updates, _ = tx.update(params, tx.init(params), params)
  >>> params = optax.apply_updates(params, updates)
  >>> print(params['q']['lora_b'].round(3), params['q']['lora_a'][0].round(3))
  [[1.414]] [0.707]

  Notes:
    Moments are recognised in `optax.ScaleByAdamState` and `optax.TraceState`.

  References:
    BaLoRA, arXiv 2605.31484.
  """
  # Guarded as well: what `inner` cannot do must not keep the factors from the
  # factorisation that its moments went over to.
  inner = transforms.skip_nonfinite(
    inner, max_consecutive=max_consecutive_skips
  )
  return recipe(
    transforms.refactor_by_balance(
      inner, layout, warmup_steps=warmup_steps, every=every
    ),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
  )
