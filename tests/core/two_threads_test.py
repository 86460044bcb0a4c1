"""No recipe hangs on two threads.

Several independent batched LAPACK calls inside one jitted function wait for
each other for ever, now and then, on CPU with two cores (jaxlib 0.10). The
core makes one call per operation; here every recipe that calls LAPACK runs many
steps in a process that is killed if it does not come back.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 400  # seconds; the work takes less than a minute

SCRIPT = """
import os, sys
if hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax
import lora_opt
from tests.core import problems

def many():
  # Enough matrices for LAPACK to be shared out over the threads.
  a, b = jax.random.split(jax.random.key(0))
  return {
    'lora_a': jax.random.normal(a, (200, 20, 16)),
    'lora_b': jax.random.normal(b, (200, 16, 20)),
  }

def padded():
  # The slow path of the bases, with all its calls, at every step.
  params = problems.mixed_tree()
  params['head']['lora_a'] = params['head']['lora_a'].at[..., -1:].set(0)
  return params

N, *names = sys.argv[1:]
N = int(N)
recipes = {name: problems.RECIPES[name] for name in names or problems.RECIPES}
recipes['all options'] = lambda rate: lora_opt.lora_rite(
  rate, escaped_mass='eigenvalues', cap_rms=1.0, rebalance=True)
for name, recipe in recipes.items():
  trainer = problems.Trainer(recipe(problems.RATES.get(name, 0.05)))
  state = jax.eval_shape(trainer.init, many())
  if 'lapack' not in trainer.update.lower(many(), state, many()).as_text():
    continue
  for params, steps in ((padded(), 4 * N), (many(), N)):
    print(name, steps, flush=True)
    _, state, first, last = trainer.train(params, steps, rank=2)
    assert problems.is_finite(state) and last < 1.01 * first, (first, last)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'arguments',
  [
    ['30', 'lora_rite', 'reflora', 'scaled_adamw'],
    pytest.param(['100'], marks=pytest.mark.long),
  ],
  ids=' '.join,
)
def test_no_recipe_hangs(arguments):
  run = subprocess.run(
    [sys.executable, '-c', SCRIPT, *arguments],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
  )
  assert run.returncode == 0, run.stdout + run.stderr
  assert {'all options', 'lora_rite', 'reflora', 'scaled_adamw'} <= {
    line.rpartition(' ')[0] for line in run.stdout.splitlines()
  }
