"""Divides the work on a batch of small matrices among all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

Array = jax.Array


def over_mesh(function: Callable[..., Any], *matrices: Array) -> Any:
  """Calls a function with its batch split over the current mesh.

  Gram matrices are the same on all devices, and so are results computed from
  them: otherwise 64 devices would do the same work 64 times. The mesh must have
  only automatic axes and be set by `jax.set_mesh`, as the training of lora_opt
  does. Without one, and within `jax.shard_map`, the function is just called.

  Args:
    function: works on each matrix of the batch separately, and accepts zeros.
    *matrices: arrays (batch, ...), all with the same batch size.

  Returns:
    What the function returns: arrays (batch, ...), the same on all devices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
    return function(*matrices)
  if mesh.size == 1:
    return function(*matrices)
  batch = matrices[0].shape[0]
  missing = -batch % mesh.size
  filled = [
    jnp.pad(_whole(x), ((0, missing), *[(0, 0)] * (x.ndim - 1)))
    for x in matrices
  ]
  split = PartitionSpec(mesh.axis_names)
  # check_vma=False: constants in the loops of the function are the same on all
  # devices.
  local = jax.shard_map(
    function, in_specs=split, out_specs=split, check_vma=False
  )
  out = local(*filled)
  return jax.tree.map(lambda x: _whole(x)[:batch], out)


def _whole(x):
  # Otherwise the computations before and after would be split in odd parts,
  # too.
  return jax.lax.with_sharding_constraint(x, PartitionSpec())
