"""Meshes and rules; that they change nothing is tested in mesh_test."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from lora_opt.devices import partitioning
from lora_opt.devices.partitioning import DEFAULT_RULES, Partitioner
from lora_opt.training import partitioning as public


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  """As much of a device as the layout of a mesh looks at."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = 'gpu'
  device_kind: str = 'fake'


def test_data_takes_the_devices_that_are_left():
  assert Partitioner(fsdp=2, tensor=2).shape(8) == (2, 2, 2)
  assert Partitioner(data=4, fsdp=2).shape(8) == (4, 2, 1)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'fsdp': 3}, 'there are 8 devices, and data=the rest, fsdp=3'),
    ({'data': 2, 'tensor': 2}, 'data=2, fsdp=1, tensor=2 do not make a mesh'),
    ({'fsdp': 16}, 'fsdp=16'),
    ({'tensor': 0}, 'tensor=0 must be at least 1'),
    ({'rules': [('mlp', 'model')]}, "rule for 'mlp': model is not a mesh axis"),
  ],
)
def test_meshes_that_cannot_be_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Partitioner(**settings).shape(8)


def test_only_data_extends_over_slices():
  devices = [FakeDevice(i, slice_index=i // 4) for i in range(8)]
  grid = partitioning.device_grid((4, 1, 2), devices)
  slices = np.vectorize(lambda device: device.slice_index)(grid)
  assert slices[:, 0, 0].tolist() == [0, 0, 1, 1]
  assert (slices == slices[:, :1, :1]).all()
  with pytest.raises(ValueError, match='data=1 must be a multiple of the 2'):
    partitioning.device_grid((1, 4, 2), devices)


def test_a_name_that_does_not_divide_is_whole_everywhere(model):
  mesh = AbstractMesh((1, 2, 8), partitioning.MESH_AXES)
  trees = (model.base, jax.eval_shape(model.init, jax.random.key(0)))
  rules = dict(
    partitioning._dividing_rules(
      DEFAULT_RULES, mesh, model.logical_axes(), trees, model.axis_units
    )
  )
  # Four heads and two of keys and values cannot be split by eight; the rows
  # of a batch are checked elsewhere.
  assert 'heads' not in rules and 'kv_heads' not in rules
  assert rules['mlp'] == 'tensor' and rules['embed'] == 'fsdp'


def test_on_one_device_everything_is_whole(model):
  placement = Partitioner().place(model, jax.devices()[:1])
  assert placement.row_shards == 1
  assert placement.process_rows(3) == [0, 1, 2]
  assert placement.whole.spec == PartitionSpec()
  batch = {'x': np.arange(6).reshape(3, 2)}
  np.testing.assert_array_equal(placement.put_batch(batch, 3)['x'], batch['x'])


def test_configurations_name_it_by_its_public_place():
  for name in public.__all__:
    assert getattr(public, name) is getattr(partitioning, name)
