"""A process that compiles much longer than the others does not end the run."""

import os
import subprocess
import sys

import pytest

from tests.training.launching import free_port

# Gloo waits 30 seconds for its peers.
DELAY = 40

SCRIPT = """
import sys, time
import jax, numpy as np
from lora_opt.training import processes
from lora_opt.devices.partitioning import Partitioner

port, index = sys.argv[1], int(sys.argv[2])
processes.start(f'localhost:{port}', 2, index, 100)
from lora_opt import models
placement = Partitioner().place(models.random_model(num_layers=1))

def slow(x):
  time.sleep(DELAY * index)  # while it is traced
  return x.sum()

rows = placement.put_batch({'x': np.full((1, 3), index + 1.0)}, 2)
step = placement.jit(slow, out_shardings=placement.whole)
print(float(jax.device_get(step(rows['x']))), file=sys.stderr)
assert float(jax.device_get(step(rows['x']))) == 9.0
"""


@pytest.mark.long
def test_the_others_wait_for_the_slowest_to_compile():
  port = str(free_port())
  script = SCRIPT.replace('DELAY', str(DELAY))
  started = [
    subprocess.Popen(
      [sys.executable, '-c', script, port, str(index)],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=300)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0], said
