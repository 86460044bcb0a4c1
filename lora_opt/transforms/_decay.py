"""Weight decay in the dtype of the updates."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def add_decayed_weights(
  weight_decay: float | Callable[[Any], Any] = 0.0,
  mask: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
  """`optax.add_decayed_weights`, with parameters cast to the updates' dtype.

  Args:
    weight_decay: the number that the parameters are multiplied by, or a
      schedule of it.
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.

  Returns:
    A transformation. `update` needs `params`.
  """
  inner = optax.add_decayed_weights(weight_decay, mask)

  def update(updates, state, params=None):
    params = jax.tree.map(lambda x, g: x.astype(g.dtype), params, updates)
    return inner.update(updates, state, params)

  return optax.GradientTransformation(inner.init, update)
