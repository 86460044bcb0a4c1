"""Float32 copies of 16-bit factors: no update is lost to rounding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import pairs as pairs_lib


class Float32MastersState(NamedTuple):
  """State of `float32_masters`."""

  masters: Any  # float32, for each 16-bit factor of a pair
  inner_state: Any  # state of `inner`, for the masters


def float32_masters(
  inner: optax.GradientTransformation,
  *,
  layout: pairs_lib.Layouts = pairs_lib.AUTO,
) -> optax.GradientTransformationExtraArgs:
  """Runs any optimizer on float32 copies of the 16-bit factors.

  A bfloat16 number has 8 bits, so an update below 1/512 of the number is lost,
  in every step again: an element of 0.1 does not move at a learning rate of
  1e-4. `lora_opt.diagnostics.lost_updates` counts the lost updates. Here
  `inner` moves float32 copies, which are kept in the state, and the updates
  bring each factor to its rounded copy.

  The factors have precedence over the copies. If a number in a factor is not
  its rounded copy, something else has moved it (averaging, a restored
  checkpoint; or a change to more than twice the number, which a 16-bit update
  cannot carry out exactly). The copy then starts again from the factor.

  Args:
    inner: a complete optimizer, learning rate included, such as a recipe.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`. Leaves
      outside the pairs, and factors of 32 bits or more, go to `inner`
      unchanged.

  Returns:
    An optax transformation; `update` needs `params`. It costs 4 bytes of state
    for each element of a 16-bit factor. Updates have the dtype of the
    parameters.

  Raises:
    ValueError: at init, if no valid pairs are found.

  >>> params = {'lora_a': jnp.ones((4, 1), jnp.bfloat16),
  ...           'lora_b': jnp.ones((1, 2), jnp.bfloat16)}
  >>> def moved(tx, params, steps=100):
  ...   state = tx.init(params)
  ...   for _ in range(steps):
  ...     updates, state = tx.update(params, state, params)
  ...     params = optax.apply_updates(params, updates)
  ...   return params['lora_b'][0, 0].item()
  >>> moved(optax.sgd(1e-3), params), moved(float32_masters(optax.sgd(1e-3)),
  ...                                       params)
  (1.0, 0.90625)
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    masters = _where_16_bits(params, layout, _wide, _nothing)
    return Float32MastersState(masters, inner.init(_shown(masters, params)))

  def update(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        'float32_masters needs the parameters: call '
        'tx.update(grads, state, params).'
      )

    def current(master, x):
      same = master.astype(x.dtype) == x
      return jnp.where(same, master, x.astype(master.dtype))

    masters = _map(current, state.masters, params)
    wide = _map(lambda _, g: _wide(g), masters, updates)
    steps, inner_state = inner.update(
      _shown(wide, updates),
      state.inner_state,
      _shown(masters, params),
      **extra_args,
    )
    moved = _map(lambda m, step: m + step.astype(m.dtype), masters, steps)

    def to_rounded(master, x):
      return (_wide(master.astype(x.dtype)) - _wide(x)).astype(x.dtype)

    rounded = _map(to_rounded, moved, params)
    return _shown(rounded, steps), Float32MastersState(moved, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _nothing(_):
  return optax.MaskedNode()


def _is_nothing(x):
  return isinstance(x, optax.MaskedNode)


def _where_16_bits(
  tree: Any,
  layout: pairs_lib.Layouts,
  here: Callable[[Any], Any],
  elsewhere: Callable[[Any], Any],
) -> Any:
  """Applies `here` to each 16-bit factor and `elsewhere` to other leaves."""
  labels = pairs_lib.lora_labels(tree, layout)
  return jax.tree.map(
    lambda x, label: (
      here(x) if label == 'lora' and x.dtype.itemsize < 4 else elsewhere(x)
    ),
    tree,
    labels,
  )


def _map(function, masters, tree):
  """Applies a function to each master and the leaf at its place in a tree."""
  return jax.tree.map(
    lambda m, x: m if _is_nothing(m) else function(m, x),
    masters,
    tree,
    is_leaf=_is_nothing,
  )


def _shown(masters, tree):
  """The tree, with masters in place of the leaves that have one."""
  return jax.tree.map(
    lambda m, x: x if _is_nothing(m) else m, masters, tree, is_leaf=_is_nothing
  )
