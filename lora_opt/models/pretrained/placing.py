"""Builds arrays shard by shard, directly on the devices that will hold them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

Index = tuple[slice, ...]


def place_array(
  shape: tuple[int, ...],
  dtype: np.dtype,
  sharding: Sharding | None,
  read: Callable[[Index], np.ndarray],
) -> jax.Array:
  """Makes an array from a function that reads any part of it.

  Host memory holds one shard at a time; `jax.make_array_from_callback` would
  read the shards of all devices before it sends the first.

  Args:
    shape: Shape of the whole array.
    dtype: Type of the array.
    sharding: Where its shards go; None for the default device.
    read: Returns the part at an index of slices, all with start and stop, in
      any type. A part that several devices hold is read once.

  Returns:
    The array; the transfers to its devices are complete.

  >>> whole = np.arange(6).reshape(2, 3)
  >>> place_array((2, 3), np.float32, None, whole.__getitem__).tolist()
  [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
  """
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  holders: dict[tuple, list[jax.Device]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    bounds = tuple(
      part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
    )
    holders.setdefault(bounds, []).append(device)
  shards = []
  for bounds, devices in holders.items():
    values = np.asarray(read(tuple(slice(*b) for b in bounds)), dtype)
    shards += [jax.device_put(values, device) for device in devices]
    # Until the shard has arrived, the host holds it twice.
    jax.block_until_ready(shards[-len(devices) :])
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def place_layers(
  shape: tuple[int, ...],
  dtype: np.dtype,
  sharding: Sharding | None,
  read: Callable[[Index], np.ndarray],
) -> Iterator[jax.Array]:
  """Like `place_array`, but yields one array per index of the first axis."""
  if isinstance(sharding, NamedSharding):
    spec = PartitionSpec(*sharding.spec[1:])
    sharding = NamedSharding(sharding.mesh, spec)
  for layer in range(shape[0]):

    def read_layer(index, layer=layer):
      return read((slice(layer, layer + 1), *index))[0]

    yield place_array(shape[1:], dtype, sharding, read_layer)


def shardings_of(model: Any, partitioner: Any | None) -> list[Sharding] | None:
  """Where each of a model's base weights goes, in the order of the tree.

  Args:
    model: The model; its base may consist of shapes.
    partitioner: Its `place(model).base` must be a tree of shardings, as for
      `lora_opt.training.partitioning.Partitioner`; None for one device.
  """
  if partitioner is None:
    return None
  return jax.tree.leaves(partitioner.place(model).base)
