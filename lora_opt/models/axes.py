"""Where activations lie when a model is split over devices."""

import jax
from flax import linen as nn


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Keeps an activation where the rules in force have its axes.

  The rules are those of `flax.linen.logical_axis_rules`; without any, or on one
  device, nothing happens. Left to itself, the compiler may move activations to
  the weights where moving the weights would be cheaper.

  Args:
    x: an activation.
    names: the logical name of each of its axes, None for one that is whole.

  >>> constrain(jax.numpy.ones((2, 3)), 'batch', None).shape
  (2, 3)
  """
  rules = nn.get_logical_axis_rules()
  if not rules:
    return x
  return jax.lax.with_sharding_constraint(
    x, nn.logical_to_mesh_axes(names, rules)
  )
