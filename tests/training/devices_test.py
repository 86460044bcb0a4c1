"""Several devices share the batch and change nothing."""

import os
import subprocess
import sys

import pytest

from lora_opt.evaluation.history import read_metrics
from tests.training import launching

pytestmark = pytest.mark.long


def losses(folder, devices, microbatches):
  flag = f'--xla_force_host_platform_device_count={devices}'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'lora_opt.main', *launching.FLAGS),
      *('--gin.TRAIN_STEPS=5', '--gin.DROPOUT_RATE=0.0'),
      f'--gin.MODEL_DIR={folder}',
      f'--gin.MICROBATCHES={microbatches}',
    ],
    env=os.environ | {'XLA_FLAGS': flag, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    capture_output=True,
    text=True,
    timeout=180,
  )
  assert done.returncode == 0, done.stderr
  rows = [row for row in read_metrics(folder) if row['split'] == 'train']
  return [row['loss'] for row in rows]


def test_four_devices_and_two_microbatches_give_the_curve_of_one(tmp_path):
  one = losses(tmp_path / 'one', 1, 1)
  four = losses(tmp_path / 'four', 4, 2)
  assert len(one) == 5
  # The same sums in another order, carried over five float32 steps.
  assert four == pytest.approx(one, rel=1e-5)
