"""An average of the parameters over the last steps, for evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import pairs as pairs_lib


class AveragedState(NamedTuple):
  """State of `averaged`."""

  count: jax.Array  # () int32, finished steps
  average: Any  # like the parameters, float32; MaskedNode for those left out
  inner_state: Any


def averaged(
  inner: optax.GradientTransformation,
  *,
  power: float = 8.0,
  others: bool = False,
  layout: pairs_lib.Layouts = pairs_lib.AUTO,
) -> optax.GradientTransformationExtraArgs:
  """Keeps an average of the factors beside any optimizer.

  The optimizer moves the parameters as it would alone. `average_of` gives those
  to evaluate and to save. It is for a learning rate that does not decay: the
  average has less of the noise that the last step has, and nobody needs to know
  in advance where the run ends. With a rate that decays to zero it adds little.

  After step t = 1, 2, ... the average becomes

    average + (power + 1) / (power + t) * (parameters - average)

  so that after T steps, step t has a weight of about (t / T)^power: most of it
  lies in the last 1 / (power + 1) of the steps, however many there are.

  The factors are averaged one by one. If the pair is (A S, B S^-T) with the
  same S at all steps, the product of the averages is the same. It is not the
  average of A B^T, and it means little if `inner` changes S in jumps.

  Args:
    inner: a complete optimizer, learning rate included, such as a recipe.
    power: how strongly late steps count; 0 is the plain mean of all steps.
    others: also average the leaves outside the pairs, such as the head of a
      classifier. Not for a tree with frozen weights, which would be copied.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`.

  Returns:
    An optax transformation; `update` needs `params`. It costs 4 bytes of state
    for each element that is averaged.

  Raises:
    ValueError: `power` is negative or not finite; at init, if no valid pairs
      are found.

  >>> params = {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.ones((1, 2))}
  >>> tx = averaged(optax.sgd(0.5), power=0.0)
  >>> state = tx.init(params)
  >>> for _ in range(2):  # from 1 to 0.5 and to 0
  ...   updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state,
  ...                              params)
  ...   params = optax.apply_updates(params, updates)
  >>> print(params['lora_b'], average_of(state, params)['lora_b'])
  [[0. 0.]] [[0.25 0.25]]

  References:
    Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization",
    arXiv 1212.1824, section 4 (polynomial-decay averaging).
  """
  if not 0 <= power < float('inf'):
    raise ValueError(f'power={power} must be a finite number >= 0')
  inner = optax.with_extra_args_support(inner)

  def init(params):
    labels = pairs_lib.lora_labels(params, layout)
    average = jax.tree.map(
      lambda x, label: (
        x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if others or label == 'lora'
        else optax.MaskedNode()
      ),
      params,
      labels,
    )
    return AveragedState(jnp.zeros((), jnp.int32), average, inner.init(params))

  def update(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        'averaged needs the parameters: call tx.update(grads, state, params).'
      )
    updates, inner_state = inner.update(
      updates, state.inner_state, params, **extra_args
    )
    share = (power + 1) / (power + 1 + state.count)

    def moved(average, x, step):
      if _is_left_out(average):
        return average
      # What `optax.apply_updates` will make of the parameter.
      new = (x + step).astype(x.dtype).astype(average.dtype)
      return average + share.astype(average.dtype) * (new - average)

    average = jax.tree.map(
      moved, state.average, params, updates, is_leaf=_is_left_out
    )
    count = optax.safe_increment(state.count)
    return updates, AveragedState(count, average, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def keeps_average(state: optax.OptState) -> bool:
  """Whether an optimizer's state has an average of the parameters."""
  return bool(_averages(state))


def average_of(state: optax.OptState, params: Any) -> Any:
  """The parameters to evaluate and to save, from the state of `averaged`.

  Args:
    state: of `averaged`, or of a chain or wrapper that has it inside.
    params: the parameters after the last update.

  Returns:
    A tree like `params`, with averages in place of what is averaged.

  Raises:
    ValueError: the state has no average, or more than one.
  """
  found = _averages(state)
  if len(found) != 1:
    raise ValueError(
      f'the state has {len(found)} averages: wrap the whole optimizer in '
      'lora_opt.averaged once'
    )
  return jax.tree.map(
    lambda average, x: x if _is_left_out(average) else average.astype(x.dtype),
    found[0].average,
    params,
    is_leaf=_is_left_out,
  )


def _averages(state) -> list[AveragedState]:
  def is_average(x):
    return isinstance(x, AveragedState)

  leaves = jax.tree.leaves(state, is_leaf=is_average)
  found = [leaf for leaf in leaves if is_average(leaf)]
  inside = [_averages(leaf.inner_state) for leaf in found]
  return found + [each for several in inside for each in several]


def _is_left_out(x):
  return isinstance(x, optax.MaskedNode)
