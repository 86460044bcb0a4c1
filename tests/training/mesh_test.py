"""Eight devices, every mesh: the curve of one, and nothing moves needlessly."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.training import mesh_program

# Combined, sums of the model and of the optimizer would be one op.
ENVIRONMENT = {
  'XLA_FLAGS': '--xla_force_host_platform_device_count=8 '
  '--xla_disable_hlo_passes=all-reduce-combiner,cpu-all-reduce-combiner'
}
RANK, LAYERS = mesh_program.RANK, mesh_program.LAYERS
# The largest weight: the embedding.
LARGEST_WEIGHT = 320 * 32


def measure(**settings):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'tests.training.mesh_program',
      json.dumps({'recipes': [], 'meshes': []} | settings),
    ],
    env=os.environ | ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=3000,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def assert_curve_of_one_device(row, name):
  # The same float32 sums in another order, over three steps.
  assert row['losses'] == pytest.approx(row['alone'], rel=1e-5), name
  assert row['adapters'] < 1e-3, name


@pytest.mark.long
def test_the_step_moves_only_what_it_must():
  """On data, fsdp and tensor at once; the names are those of the HLO."""
  row = measure(recipes=['lora_rite'], meshes=[[2, 2, 2]], optimize=True)
  row = row['lora_rite']['2x2x2']
  assert_curve_of_one_device(row, '2x2x2')
  optimizer = [c for c in row['collectives'] if 'optimizer/' in c[2]]
  model = [c for c in row['collectives'] if 'optimizer/' not in c[2]]
  assert optimizer and model
  # Of factors split over fsdp and tensor the optimizer sums r x r matrices.
  for kind, size, name in optimizer:
    assert kind == 'all-reduce' and size <= LAYERS * RANK**2, (name, size)
  # Weights are gathered, activations and gradients are summed; nothing else.
  for kind, size, name in model:
    assert kind in ('all-reduce', 'all-gather'), (kind, name)
    if kind == 'all-gather':
      assert size <= LARGEST_WEIGHT, (name, size)


@pytest.mark.long
@pytest.mark.parametrize('recipe', ['adamw', 'lora_rite', 'reflora'])
def test_every_mesh_gives_the_curve_of_one_device(recipe):
  rows = measure(recipes=[recipe])[recipe]
  assert len(rows) == 10
  for name, row in rows.items():
    assert_curve_of_one_device(row, name)
    if name == '8x1x1':
      # Replicas only sum gradients and scalars.
      assert {kind for kind, *_ in row['collectives']} == {'all-reduce'}


@pytest.mark.long
def test_every_recipe_gives_the_curve_of_one_device():
  for recipe, rows in measure(meshes=[[1, 8, 1], [2, 2, 2]]).items():
    for name, row in rows.items():
      assert_curve_of_one_device(row, (recipe, name))


@pytest.mark.long
def test_dpo_gives_the_curve_of_one_device_on_every_mesh():
  """Each device has pairs of its own, and the base is asked about them too."""
  rows = measure(recipes=['lora_rite'], objective='dpo')['lora_rite']
  assert len(rows) == 10
  for name, row in rows.items():
    assert_curve_of_one_device(row, name)
    assert row['losses'][0] == pytest.approx(np.log(2), rel=1e-6)
    assert row['losses'][-1] < 0.99 * np.log(2)
