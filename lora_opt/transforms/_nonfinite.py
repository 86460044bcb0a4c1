"""What is not finite changes nothing, is counted, and ends by being seen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt.transforms._adam import ScaleByAdamState
from lora_opt.transforms._lora_rite import (
  ScaleByLoraRiteState,
  StepByLoraRiteState,
)
from lora_opt.transforms._rates import ScalarOrSchedule, raw_rate_at

# States that keep themselves finite, and still where `finite` is False.
SELF_KEEPING = (ScaleByAdamState, ScaleByLoraRiteState, StepByLoraRiteState)

# More than the overflows in which dynamic loss scaling finds its scale (from
# 2^24 down to 1), and few enough that a run that is stuck shows it.
MAX_CONSECUTIVE_SKIPS = 50


class Report:
  """What a transformation finds out on its way, for the guard around it.

  Filled while `update` is traced, within one trace.

  Attributes:
    gradients: (), whether all gradients are finite, as the guard would say.
    updates: (), whether all updates are, given that.
  """

  gradients: jax.Array | None = None
  updates: jax.Array | None = None


class SkipNonfiniteState(NamedTuple):
  """State of `skip_nonfinite`; `lora_opt.diagnostics.skips` reads it."""

  count: jax.Array  # () int32: steps with finite gradients, as schedules count
  skipped: jax.Array  # () int32: skipped steps, all together
  consecutive: jax.Array  # () int32: skipped steps since the last whole one
  inner_state: Any


def skip_nonfinite(
  inner: optax.GradientTransformation,
  *,
  max_consecutive: int | None = MAX_CONSECUTIVE_SKIPS,
  learning_rate: ScalarOrSchedule = 0.0,
  gives_up_on: Callable[[Any], Any] | None = None,
  elementwise: bool = False,
  reports: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """The one guard against NaN, inf and overflow. A bad step is skipped:

  - Gradients whose squared norm, over all of them, is not finite: the step
    does not happen. Every update is zero, and the state of `inner`, its step
    count and schedule included, stays as it is. (A gradient whose square
    overflows would leave an infinite second moment behind.)
  - An update that is not finite, though the gradients are, as from a parameter
    that is NaN or out of range: its elements are zero. For methods that work
    with matrices these are all of the pair. The others are applied. Elements
    of the state that would not be finite stay as they were; counts go on.
  - A learning rate that is not finite: `scale_by_finite_rate` takes it as zero.

  Each of these counts as one skipped step. As in `optax.apply_if_finite` there
  is an end to it: after `max_consecutive` skipped steps in a row, skipped steps
  give updates of NaN, so that a run that is stuck shows it (where the gradients
  are finite, those elements that would have been zero). One bad gradient
  in `optax.MultiSteps` is such a case: its accumulator stays NaN, unless it has
  `should_skip_update_fn=optax.skip_not_finite`. The state of `inner` remains
  finite also then.

  `inner` gets gradients in float32 or wider, whatever they are, and the
  verdict on them as an extra argument, `finite`, a boolean scalar. What keeps
  its own state still by it, as `scale_by_adam`, says so with a state type in
  `SELF_KEEPING`, and is spared the selection. Inside another `skip_nonfinite`
  the verdict is the outer one's.

  The bad gradients themselves reach `inner` as they are: zeroing them first
  would cost a copy of every good one. What comes of them is thrown away.

  Args:
    inner: the transformation to protect.
    max_consecutive: skipped steps in a row before updates are NaN; None: any.
    learning_rate: the one that `inner` applies, to count steps at which it is
      not finite.
    gives_up_on: from updates to a tree of booleans: which of them are NaN at
      the end; None: all.
    elementwise: `inner` makes finite updates of finite gradients and a finite
      parameter, as Adam does. Then updates are not looked at to count steps,
      which spares a pass over them: one that is not finite, since its parameter
      is not, is made zero without being counted.
    reports: `inner` forms squares of all gradients and sees its updates come
      anyway, and fills the `Report` that it gets as the extra argument
      `report`; it keeps still by its own verdict.

  Returns:
    A transformation. Updates have the dtype of the gradients.

  >>> tx = skip_nonfinite(optax.adam(0.1), max_consecutive=1)
  >>> x, bad = jnp.ones(2), jnp.array([1.0, jnp.nan])
  >>> update, state = tx.update(bad, tx.init(x), x)
  >>> print(update, state.skipped, state.consecutive)
  [0. 0.] 1 1
  >>> print(tx.update(bad, state, x)[0])
  [nan nan]
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return SkipNonfiniteState(
      *(jnp.zeros((), jnp.int32) for _ in range(3)), inner.init(params)
    )

  def update(
    updates, state, params=None, *, finite=None, report=None, **extra_args
  ):
    del report  # that of a guard further out, which judges by itself
    report = Report() if reports and finite is None else None
    good = finite
    if finite is None and report is None:
      good = _squares_are_finite(updates)
    new, inner_state = inner.update(
      jax.tree.map(_wide, updates),
      state.inner_state,
      params,
      finite=good,
      report=report,
      **extra_args,
    )
    if report is not None:
      if report.updates is None:
        raise ValueError('inner does not report: leave reports=False')
      good, sound = report.gradients, report.updates
    new = jax.tree.map(lambda x, old: x.astype(old.dtype), new, updates)
    rate = raw_rate_at(learning_rate, state.count)
    going = good & jnp.all(jnp.isfinite(rate))
    if elementwise:
      whole = going
    else:
      whole = going & (_all_finite(new) if report is None else sound)
    skipped = jnp.where(whole, 0, 1).astype(jnp.int32)
    consecutive = skipped * optax.safe_increment(state.consecutive)
    new = _instead_of_nonfinite(
      new, good, going, state.consecutive, max_consecutive, gives_up_on
    )
    return new, SkipNonfiniteState(
      state.count + jnp.where(good, 1, 0).astype(jnp.int32),
      state.skipped + skipped,
      consecutive,
      _kept_finite(good, inner_state, state.inner_state),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _instead_of_nonfinite(
  new, good, going, consecutive, max_consecutive, gives_up_on
):
  """Zero, or NaN at the end of patience.

  What is known before the updates are decides for all of them, an update that
  is not finite for its own elements only: were it to decide for others, they
  all would have to be kept until it is known, and read once more.
  """
  if max_consecutive is None:
    return _kept_finite(good, new, jax.tree.map(jnp.zeros_like, new))
  at_end = consecutive >= max_consecutive
  where = jax.tree.map(lambda _: True, new)
  where = where if gives_up_on is None else gives_up_on(new)

  def each(x, here):
    instead = jnp.where(at_end & here, _nan(x), 0)
    passes = going | ~(at_end & here)
    return jnp.where(good & jnp.isfinite(x) & passes, x, instead)

  return jax.tree.map(each, new, where)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _nan(x):
  return jnp.asarray(jnp.nan, x.dtype)


def _kept_finite(good, new, old):
  """The new where gradients are good and it is finite, by elements.

  Selecting, and not branching: outside of jit a branch would be compiled anew
  at every step, and inside it keeps XLA from updating in place. By elements,
  and not by a verdict on all of them: the selection is then part of the loop
  that computes them, where a verdict would need a second one.
  """

  def keeps_itself(x):
    return isinstance(x, SELF_KEEPING)

  def pick(x, y):
    if keeps_itself(x):
      return x
    if jnp.issubdtype(x.dtype, jnp.inexact):
      return jnp.where(good & jnp.isfinite(x), x, y)
    return jnp.where(good, x, y)

  return jax.tree.map(pick, new, old, is_leaf=keeps_itself)


def _squares_are_finite(tree):
  """Whether the square of every leaf's norm is finite."""
  squares = [jnp.sum(jnp.square(_wide(x))) for x in jax.tree.leaves(tree)]
  return jnp.all(jnp.isfinite(_stack(squares, jnp.zeros(()))))


def _all_finite(tree):
  """Whether every element of every leaf is finite."""
  finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
  return jnp.all(_stack(finite, jnp.array(True)))


def _stack(scalars, first):
  # An array, and not one by one: XLA would copy the whole chain of scalars
  # into the loop over every leaf, which then takes ever longer to compile.
  return jnp.stack([first, *scalars])
