"""Skips and counts steps that are not finite, and shows when a run is stuck."""

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

# States that stay finite by themselves, and do not change where `finite` is
# False.
SELF_KEEPING = (ScaleByAdamState, ScaleByLoraRiteState, StepByLoraRiteState)

# More than the overflows that dynamic loss scaling needs to find its scale
# (from 2^24 down to 1), and few enough that a stuck run is noticed.
MAX_CONSECUTIVE_SKIPS = 50


class Report:
  """The results of checks that a transformation makes for its guard.

  It is filled while `update` is traced, within one trace.

  Attributes:
    gradients: (), whether all gradients are finite, by the guard's criterion.
    updates: (), whether all updates are finite, if the gradients are.
  """

  gradients: jax.Array | None = None
  updates: jax.Array | None = None


class SkipNonfiniteState(NamedTuple):
  """State of `skip_nonfinite`; `lora_opt.diagnostics.skips` reads it."""

  count: jax.Array  # () int32: finite-gradient steps, as schedules count them
  skipped: jax.Array  # () int32: skipped steps in total
  consecutive: jax.Array  # () int32: skipped steps since the last good one
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
  """Guards `inner` against NaN, inf and overflow by skipping bad steps.

  There are three kinds of bad steps:

  - The squared norm of all gradients together is not finite. The whole step is
    skipped: every update is zero, and the state of `inner`, including its step
    count and schedule, does not change. (A gradient whose square overflows
    would leave an infinite second moment behind.)
  - An update is not finite although the gradients are, for example because a
    parameter is NaN or out of range. These elements of the update become zero;
    for methods that work with matrices, these are all elements of the pair.
    The other elements are applied. Elements of the state that would not be
    finite keep their values; counts go on.
  - The learning rate is not finite. `scale_by_finite_rate` takes it as zero.

  Each of these counts as one skipped step. As in `optax.apply_if_finite` there
  is a limit: after `max_consecutive` skipped steps in a row, skipped steps
  give updates of NaN, so that a stuck run is noticed. (If the gradients are
  finite, only the elements that would have been zero are NaN.) One bad gradient
  in `optax.MultiSteps` is such a case: its accumulator stays NaN, unless it has
  `should_skip_update_fn=optax.skip_not_finite`. The state of `inner` remains
  finite even then.

  `inner` gets the gradients in float32 or wider, whatever their dtype. It also
  gets the extra argument `finite`, a boolean scalar that says whether the
  gradients are finite. A transformation that itself leaves its state unchanged
  where `finite` is False, such as `scale_by_adam`, has a state type in
  `SELF_KEEPING`; the guard then does not select between old and new state.
  Inside another `skip_nonfinite`, the outer one's `finite` is used.

  Bad gradients reach `inner` unchanged: setting them to zero first would cost a
  copy of every good gradient. The results computed from them are discarded.

  Args:
    inner: the transformation to protect.
    max_consecutive: number of skipped steps in a row before updates become
      NaN. None: no limit.
    learning_rate: the learning rate that `inner` applies. It is used to count
      the steps at which it is not finite.
    gives_up_on: function from the updates to a tree of booleans, true for the
      updates that become NaN at the limit. None: all.
    elementwise: says that `inner` makes finite updates from finite gradients
      and finite parameters, as Adam does. Updates are then not checked to count
      steps, which saves a pass over them. An update that is not finite because
      its parameter is not becomes zero without being counted.
    reports: says that `inner` computes the squares of all gradients and knows
      whether its updates are finite anyway. `inner` then fills the `Report`
      that it gets as the extra argument `report`, and leaves its state
      unchanged by its own check.

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
    del report  # from an outer guard, which makes its own checks
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
  """Replaces bad updates by zero, or by NaN once the limit is reached.

  A check that is made before the updates exist decides for all of them. An
  update that is not finite decides only for its own elements: if it decided for
  others, all updates would have to be kept until then, and read once more.
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
  """Selects elements of `new` that are finite, if the gradients are good.

  All other elements come from `old`. This is a selection, not a branch: outside
  of jit a branch would be compiled anew at every step, and inside jit it keeps
  XLA from updating in place. It is elementwise, not one check of all elements:
  the selection is then part of the loop that computes the elements, whereas one
  check of all would need a second loop.
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
  # As one array, not combined one by one: XLA would copy the whole chain of
  # scalars into the loop over every leaf, which takes ever longer to compile.
  return jnp.stack([first, *scalars])
