"""No recipe hangs on two threads.

Several independent batched LAPACK calls inside one jitted function wait for
each other for ever, now and then, on CPU with two cores (jaxlib 0.10). The
core makes one call per operation; here every recipe runs many steps in a
process that is killed if it does not come back.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 500
TIMEOUT = 240  # seconds; the work takes about ten

SCRIPT = f"""
import os
if hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax
import lora_opt
from tests.core import problems

# rank padded: the slow path of the bases, with all its calls, at every step
params = problems.mixed_tree()
params['head']['lora_a'] = params['head']['lora_a'].at[..., -1:].set(0)
options = dict(
  lora_rite=dict(escaped_mass='eigenvalues', cap_rms=1.0, rebalance=True))
for name, recipe in problems.RECIPES.items():
  tx = recipe(problems.RATES[name], **options.get(name, {{}}))
  trainer = problems.Trainer(tx)
  _, state, first, last = trainer.train(params, {STEPS}, rank=2)
  assert problems.is_finite(state) and last < first, name
  print(name, first, last, flush=True)
"""


@pytest.mark.slow
def test_no_recipe_hangs():
  run = subprocess.run(
    [sys.executable, '-c', SCRIPT],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
  )
  assert run.returncode == 0, run.stdout + run.stderr
