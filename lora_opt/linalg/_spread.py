"""Small matrices are worked on by all devices, each on a part of the batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

Array = jax.Array


def over_mesh(function: Callable[..., Any], *matrices: Array) -> Any:
  """Calls a function of batches with the batch split over the mesh that is set.

  Gram matrices are the same on all devices, and so is what is made of them: 64
  devices would do the same work 64 times. Only a mesh of automatic axes that
  `jax.set_mesh` made known can be used, as the training of lora_opt does;
  without one, and within `jax.shard_map`, the function is just called.

  Args:
    function: works on each matrix of the batch by itself, and takes zeros.
    *matrices: (batch, ...), of equal batches.

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
  # Constants in the loops of the function are the same on all devices.
  local = jax.shard_map(
    function, in_specs=split, out_specs=split, check_vma=False
  )
  out = local(*filled)
  return jax.tree.map(lambda x: _whole(x)[:batch], out)


def _whole(x):
  # Or what comes before and after would be split in odd parts, too.
  return jax.lax.with_sharding_constraint(x, PartitionSpec())
