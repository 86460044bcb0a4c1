"""A wrapper that rebalances the factors before each step."""

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
  """Runs any optimizer on factors that are kept balanced: A^T A = B^T B.

  Before a step of `inner` the pair becomes (A P, B P^-T), which has the same
  A B^T. The gradients are transformed accordingly, and so are the Adam moments
  and momenta in the state of `inner`. `transforms.refactor_by_balance` has the
  formulas.

  Args:
    inner: a complete optimizer, learning rate included. It sees only the LoRA
      leaves. Its moments must be those of the gradients that it receives. The
      moments of `scaled_adamw`, of `lora_pro` and of `scaled_gd` with momentum
      are of preconditioned gradients and would be transformed wrongly. So
      would the largest elements that `optax.adamax` keeps in place of Adam's
      squares.
    warmup_steps: number of steps before the first balancing.
    every: number of steps from one balancing to the next.
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
      found, or if the state of `inner` has arrays other than Adam moments and
      momenta. (The states of LoRA-RITE and AltLoRA are allowed, since these two
      adapt to a new factorisation by themselves.)

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
  # `inner` gets its own guard: even if its step fails, the factors must move to
  # the factorisation that its moments were transformed to.
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
