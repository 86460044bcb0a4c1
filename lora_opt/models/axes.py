"""Where activations and weights lie while a split model computes."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

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


def is_split(name: str) -> bool:
  """Whether the rules in force split a logical axis over several devices.

  >>> is_split('heads')
  False
  """
  axes = _mesh_axes(dict(nn.get_logical_axis_rules()).get(name))
  sizes = jax.sharding.get_abstract_mesh().shape
  return any(sizes.get(axis, 1) > 1 for axis in axes)


@contextlib.contextmanager
def unsplit(name: str) -> Iterator[None]:
  """Within, the rules in force leave a logical axis whole.

  >>> with unsplit('heads'):
  ...   is_split('heads')
  False
  """
  rules = nn.get_logical_axis_rules()
  with nn.logical_axis_rules([rule for rule in rules if rule[0] != name]):
    yield


def on_shards(
  function: Callable[..., Any], given: tuple, names: tuple, results: Any
) -> Any:
  """Runs a function on every device's part of its arguments.

  For what the compiler cannot split by itself, such as a kernel: it would bring
  the arguments together on every device. The function must treat the parts
  independently. Without rules or a mesh it is simply called.

  Args:
    function: of arrays or trees of them.
    given: its arguments.
    names: for each the logical names of its first axes, or a tree of them; the
      other axes are whole.
    results: likewise for what it returns.

  >>> x = jax.numpy.ones((2, 3))
  >>> on_shards(jax.numpy.sin, (x,), (('batch',),), ('batch',)).shape
  (2, 3)
  """
  rules = nn.get_logical_axis_rules()
  if not rules or jax.sharding.get_abstract_mesh().empty:
    return function(*given)

  def specs(names):
    return jax.tree.map(
      lambda names: nn.logical_to_mesh_axes(names, rules),
      names,
      is_leaf=_are_names,
    )

  return jax.shard_map(
    function,
    in_specs=specs(names),
    out_specs=specs(results),
    # Kernels do not say along which axes their results differ.
    check_vma=False,
  )(*given)


def row_shards() -> int:
  """Into how many parts the rules in force split the rows of a batch.

  >>> row_shards()
  1
  """
  axes = _mesh_axes(dict(nn.get_logical_axis_rules()).get('batch'))
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes.get(axis, 1) for axis in axes)


def _are_names(x: Any) -> bool:
  return isinstance(x, tuple) and all(
    name is None or isinstance(name, str) for name in x
  )


def _mesh_axes(axes: str | tuple[str, ...] | None) -> set[str]:
  return {axes} if isinstance(axes, str) else set(axes or ())
