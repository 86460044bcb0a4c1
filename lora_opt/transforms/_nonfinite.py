"""A bad gradient changes nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt.transforms._adam import ScaleByAdamState
from lora_opt.transforms._lora_rite import (
  ScaleByLoraRiteState,
  StepByLoraRiteState,
)

# States that the extra argument `finite` keeps still already.
SELF_KEEPING = (ScaleByAdamState, ScaleByLoraRiteState, StepByLoraRiteState)


class SkipNonfiniteState(NamedTuple):
  """State of `skip_nonfinite`."""

  skipped: jax.Array  # () int32: steps skipped so far
  inner_state: Any


def skip_nonfinite(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """A step with NaN, inf or overflowing gradients does not happen.

  If the squared norm of all gradients is not finite, every update is zero and
  the state of `inner`, its step count and schedule included, stays as it is;
  `skipped` counts one. Unlike `optax.apply_if_finite` it never gives in, and
  a gradient whose square overflows counts as bad too: it would leave an
  infinite second moment behind.

  `inner` receives the verdict as an extra argument, `finite`, a boolean
  scalar. What keeps its own state still by it, as `scale_by_adam`, says so
  with a state type in `SELF_KEEPING`, and is spared the selection.

  The bad gradients themselves reach `inner` as they are: zeroing them first
  would cost a copy of every good one. What comes of them is thrown away.

  Args:
    inner: the transformation to protect.

  Returns:
    A transformation.

  >>> tx = skip_nonfinite(optax.adam(0.1))
  >>> x = jnp.ones(2)
  >>> update, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(x), x)
  >>> print(update, state.skipped)
  [0. 0.] 1
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return SkipNonfiniteState(jnp.zeros((), jnp.int32), inner.init(params))

  def update(updates, state, params=None, **extra_args):
    good = _all_finite(updates)

    # Selecting, and not branching: outside of jit a branch would be compiled
    # anew at every step, and inside it keeps XLA from updating in place.
    def select(new, old):
      def pick(x, y):
        return x if isinstance(x, SELF_KEEPING) else jnp.where(good, x, y)

      return jax.tree.map(
        pick, new, old, is_leaf=lambda x: isinstance(x, SELF_KEEPING)
      )

    new, inner_state = inner.update(
      updates,
      state.inner_state,
      params,
      **{**extra_args, 'finite': good},
    )
    skipped = state.skipped + jnp.where(good, 0, 1).astype(jnp.int32)
    rest = jax.tree.map(jnp.zeros_like, new)
    return select(new, rest), SkipNonfiniteState(
      skipped, select(inner_state, state.inner_state)
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _all_finite(tree):
  """Whether the square of every leaf's norm is finite."""
  squares = [jnp.zeros(())]
  for x in jax.tree.leaves(tree):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares.append(jnp.sum(jnp.square(wide)))
  # Of an array, and not one by one: XLA would copy the whole chain of scalars
  # into the loop over every leaf, which then takes ever longer to compile.
  return jnp.all(jnp.isfinite(jnp.stack(squares)))
