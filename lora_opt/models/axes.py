"""Where activations and weights lie while a split model computes."""

import math

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


def gathered(weight: jax.Array, *names: str | None) -> jax.Array:
  """Brings a weight together along the axes that rows of a batch are split by.

  What is split along such an axis only to be stored (`fsdp`) is made whole
  where it is used, so that it is never the rows that move. What is split along
  another one (`tensor`) stays split.

  Args:
    weight: in the type it is used in: that is what is sent.
    names: the logical name of each of its axes.

  >>> gathered(jax.numpy.ones((2, 3)), 'embed', 'mlp').shape
  (2, 3)
  """
  axes = dict(nn.get_logical_axis_rules())
  rows = _mesh_axes(axes.get('batch'))
  return constrain(
    weight,
    *(None if rows & _mesh_axes(axes.get(name)) else name for name in names),
  )


def row_shards() -> int:
  """Into how many parts the rules in force split the rows of a batch.

  >>> row_shards()
  1
  """
  axes = _mesh_axes(dict(nn.get_logical_axis_rules()).get('batch'))
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes.get(axis, 1) for axis in axes)


def _mesh_axes(axes: str | tuple[str, ...] | None) -> set[str]:
  return {axes} if isinstance(axes, str) else set(axes or ())
