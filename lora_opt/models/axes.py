"""Placement of activations and weights in a model split over devices."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Constrains an activation to the sharding that the current rules give it.

  The rules are those of `flax.linen.logical_axis_rules`; without any, or on one
  device, nothing happens. Without the constraint, the compiler may move
  activations to the weights where moving the weights would be cheaper.

  Args:
    x: an activation.
    names: the logical name of each axis; None for an axis that is not split.

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
  """Gathers a weight along the mesh axes that split the rows of a batch.

  A weight that is split along such a mesh axis only for storage (`fsdp`) is
  gathered where it is used, so that the rows never move. A split along other
  mesh axes (`tensor`) stays.

  Args:
    weight: already in the type of the computation, since it is sent in it.
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
  """Whether the current rules split a logical axis over several devices.

  >>> is_split('heads')
  False
  """
  axes = _mesh_axes(dict(nn.get_logical_axis_rules()).get(name))
  sizes = jax.sharding.get_abstract_mesh().shape
  return any(sizes.get(axis, 1) > 1 for axis in axes)


@contextlib.contextmanager
def unsplit(name: str) -> Iterator[None]:
  """A context in which the current rules do not split a logical axis.

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
  """Runs a function on each device's shard of the arguments.

  For functions that the compiler cannot split by itself, such as kernels: it
  would gather their arguments on every device. The function must treat the
  shards independently. Without rules or a mesh it is called directly.

  Args:
    function: takes arrays or trees of arrays.
    given: its arguments.
    names: for each argument the logical names of its first axes, or a tree of
      such names; the remaining axes are not split.
    results: the same for what the function returns.

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
    # Kernels do not declare along which mesh axes their results vary.
    check_vma=False,
  )(*given)


def row_shards() -> int:
  """The number of parts that the current rules split the rows of a batch into.

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
