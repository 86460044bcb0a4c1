"""A sharded load never holds a second full copy on the host."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.models.pretrained.load_memory import write_checkpoint

ROOT = pathlib.Path(__file__).parents[3]
DEVICES = 8


@pytest.mark.slow
def test_sharded_load_peaks_near_the_size_of_the_weights(tmp_path):
  parameters = write_checkpoint(tmp_path, layers=5, width=2048)
  run = subprocess.run(
    [sys.executable, '-m', 'tests.models.pretrained.load_memory', tmp_path],
    cwd=ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': str(DEVICES)},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  report = json.loads(run.stdout)
  assert report['devices'] == DEVICES
  assert report['parameters'] == parameters > 300e6
  assert report['bytes'] == 2 * parameters
  assert report['largest_share'] == 1 / DEVICES
  # One shard of the largest stack and one tensor: 0.09 of these weights.
  assert report['peak'] - report['before'] < 1.3 * report['bytes']
