"""Eight devices, factors sharded along their long axis: nothing is gathered."""

import json
import os
import subprocess
import sys

import pytest

from tests.core import problems

# Of three layers of rank 4, the largest batch of r x r matrices in the tree.
LARGEST_GRAM = 3 * 4 * 4


PAPERS = (
  'lora_rite',
  'reflora',
  'reflora_s',
  'lora_plus',
  'polora',
  'recommended',
)


@pytest.fixture(
  scope='module',
  params=[
    ('auto', *PAPERS),
    pytest.param(('auto',), marks=pytest.mark.long),
    pytest.param(('explicit',), marks=pytest.mark.long),
  ],
  ids=['auto, of the papers', 'auto', 'explicit'],
)
def rows(request):
  done = subprocess.run(
    [sys.executable, '-m', 'tests.core.sharding_program', *request.param],
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found.keys() == set(request.param[1:] or problems.RECIPES)
  return found


# One test per mesh: with more, every worker would run the program again.
def test_no_factor_is_gathered_and_nothing_compiles_twice(rows):
  for name, row in rows.items():
    # Without a sum over devices no finite check could be right.
    assert row['collectives'], name
    for kind, size in row['collectives']:
      assert kind == 'all-reduce' and size <= LARGEST_GRAM, (name, kind, size)
    assert row['compiles'] == [0, 0, 0], name
    assert row['misplaced'] == [], name
    # The same float32 sums in another order, over three steps.
    assert row['error'] < 1e-5, name
