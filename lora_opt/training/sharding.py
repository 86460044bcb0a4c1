"""Data parallelism: batches split over all devices, everything else whole."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXIS = 'data'


def data_mesh(batch_size: int = 0, microbatches: int = 1) -> Mesh:
  """A mesh of all devices of all processes along `data`.

  Args:
    batch_size: rows of a global batch.
    microbatches: parts each batch is computed in.

  Raises:
    ValueError: the devices cannot share each part evenly.
  """
  devices = np.asarray(jax.devices())
  parts = devices.size * microbatches
  if batch_size % parts:
    raise ValueError(
      f'batch_size={batch_size} does not divide evenly into '
      f'microbatches={microbatches} on {devices.size} devices; use a multiple '
      f'of {parts}'
    )
  return Mesh(devices, (BATCH_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """Places every leaf whole on every device (no copy where it already is)."""
  return jax.device_put(tree, replicated(mesh))


def process_rows(batch_size: int, mesh: Mesh) -> list[int]:
  """The rows of a global batch that the devices of this process hold."""
  places = split_rows(mesh).addressable_devices_indices_map((batch_size,))
  held = [range(batch_size)[rows] for (rows,) in places.values()]
  return sorted({row for rows in held for row in rows})


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Makes global arrays of this process's rows.

  Args:
    batch: name -> (rows of this process, ...).
    mesh: from `data_mesh`.

  Returns:
    name -> (rows of all processes, ...), rows split over the devices.
  """
  sharding = split_rows(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
    for name, value in batch.items()
  }


def put_global(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Places a batch that every process holds whole, rows split over devices."""
  return jax.device_put(dict(batch), split_rows(mesh))
