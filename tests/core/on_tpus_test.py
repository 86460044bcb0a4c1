"""Every recipe compiles for TPUs, and what the compiler makes of it.

    python -m tests.core.on_tpus_test

writes the table of cycles anew, where a change of them is meant.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lora_opt
from lora_opt.planning import targets
from lora_opt.planning.chips import read_topology
from lora_opt.planning.costs import costs
from lora_opt.planning.cycles import cycles
from tests.core import problems

TABLE = pathlib.Path(__file__).with_name('on_tpus.json')
NAMES = ['optax.adamw', *problems.RECIPES]
# Between releases of one compiler; a factor too much is a pass too much.
TOLERANCE = 0.1


def compiled(name: str) -> str:
  """One step of two stacked layers, their long axes split over four chips."""
  devices = targets.find_target(read_topology('v5e-4')).devices
  mesh = Mesh(np.array(devices), ('fsdp',))

  def shape(dims, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=sharding)

  params = {
    'lora_a': shape((2, 512, 16), None, 'fsdp', None),
    'lora_b': shape((2, 16, 1024), None, None, 'fsdp'),
  }
  recipe = optax.adamw if name == 'optax.adamw' else problems.RECIPES[name]
  tx = recipe(1e-3)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    jax.eval_shape(tx.init, params),
    lora_opt.state_shardings(tx, params),
  )

  def step(params, state, gradients):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  with jax.set_mesh(mesh):
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
  return lowered.compile().as_text()


def row(name: str) -> dict:
  text = compiled(name)
  found = cycles(text)
  kinds = {each.kind for each in costs(text, 4, 0.0).collectives}
  return {
    'least': found.least,
    'most': found.most,
    'custom_calls': dict(found.uncounted),
    'collectives': sorted(kinds),
  }


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_step_on_four_chips(name):
  pytest.importorskip('libtpu')
  found, known = row(name), json.loads(TABLE.read_text())[name]
  # Not one call of LAPACK's kind, which takes long to compile and to run.
  assert found['custom_calls'] == {}
  # Factors are never gathered, only what is r x r.
  assert found['collectives'] == known['collectives']
  for key in ('least', 'most'):
    assert found[key] <= known[key] * (1 + TOLERANCE), (key, found, known)
    if found[key] < known[key] * (1 - TOLERANCE):
      pytest.fail(
        f'{found[key]} cycles, fewer than {known[key]}: renew {TABLE}'
      )


if __name__ == '__main__':
  table = {}
  for each in NAMES:
    table[each] = row(each)
    print(each, table[each], flush=True)
  TABLE.write_text(json.dumps(table, indent=2) + '\n')
