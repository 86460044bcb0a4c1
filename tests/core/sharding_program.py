"""Runs every recipe on eight host devices; prints what it saw as JSON.

`XLA_FLAGS=--xla_force_host_platform_device_count=8
python -m tests.core.sharding_program auto|explicit [recipe]...`
"""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lora_opt
from tests.core import problems

STEPS = 3
SHAPE = re.compile(r'(?:pred|[a-z]+\d+)\[([\d,]*)\]')
COLLECTIVE = re.compile(
  r'= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|'
  r'reduce-scatter)(?:-start)?\('
)


def tree():
  """Scanned and not, two ranks; every long axis divides by eight."""
  rng = np.random.default_rng(0)

  def site(*shape_a, out):
    *batch, _, rank = shape_a
    return {
      'lora_a': rng.normal(0, 0.1, shape_a).astype(np.float32),
      'lora_b': rng.normal(0, 0.1, (*batch, rank, out)).astype(np.float32),
    }

  return {
    'layers': {
      'q': site(3, 128, 4, out=256),
      'down': site(3, 384, 4, out=128),
    },
    'head': site(128, 2, out=512),
    'tail': site(128, 2, out=512),
  }


def long_axis(path, leaf):
  axes = [None] * leaf.ndim
  axes[-2 if path[-1].key == 'lora_a' else -1] = 'fsdp'
  return PartitionSpec(*axes)


def collectives(text):
  """[[kind, elements of its largest result]] of compiled HLO."""
  found = []
  for shapes, kind in COLLECTIVE.findall(text):
    sizes = [
      math.prod(int(n) for n in dims.split(',') if n)
      for dims in SHAPE.findall(shapes)
    ]
    found.append([kind, max(sizes)])
  return found


def misplaced(state, tx, params):
  """Leaves of the state that are not where `state_shardings` has them."""
  wanted = jax.tree.leaves(lora_opt.state_shardings(tx, params))
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return [
    f'{jax.tree_util.keystr(path)}: {x.sharding.spec}, not {sharding.spec}'
    for (path, x), sharding in zip(leaves, wanted, strict=True)
    if not x.sharding.is_equivalent_to(sharding, x.ndim)
  ]


def train(tx, params, compiles=None):
  """(params, state, compilations after each step, HLO of the step)."""

  def step(params, state, gradients):
    updates, state = tx.update(gradients, state, params)
    return jax.tree.map(jnp.add, params, updates), state

  shardings = lora_opt.state_shardings(tx, params)
  state = jax.jit(tx.init, out_shardings=shardings)(params)
  step = jax.jit(step)
  gradients = jax.jit(
    lambda params: jax.tree.map(lambda x: 0.1 * jnp.cos(30 * x), params)
  )(params)
  text = step.lower(params, state, gradients).compile().as_text()
  seen = []
  for _ in range(STEPS):
    params, state = step(params, state, gradients)
    seen.append(len(compiles or ()))
  return params, state, seen, text


def measure(recipe, meshes):
  compiles = []

  def listen(event, *_, **__):
    if 'backend_compile' in event:
      compiles.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  results = []
  for mesh in meshes:
    with jax.set_mesh(mesh):
      params = jax.tree_util.tree_map_with_path(
        lambda path, x, mesh=mesh: jax.device_put(
          x, NamedSharding(mesh, long_axis(path, x))
        ),
        tree(),
      )
      out, state, seen, text = train(recipe, params, compiles)
      results.append(jax.device_get(out))
      row = {
        'collectives': collectives(text),
        'compiles': [n - seen[0] for n in seen],
        'misplaced': misplaced(state, recipe, params),
      }
  start, alone, many = (jax.tree.leaves(x) for x in (tree(), *results))
  row['error'] = max(
    float(np.linalg.norm(x - y) / np.linalg.norm(y - z))
    for x, y, z in zip(many, alone, start, strict=True)
    if np.any(y != z)
  )
  return row


def main(kind, *names):
  types = {'auto': AxisType.Auto, 'explicit': AxisType.Explicit}
  meshes = [
    jax.make_mesh(
      (n,), ('fsdp',), axis_types=(types[kind],), devices=jax.devices()[:n]
    )
    for n in (1, 8)
  ]
  rows = {
    name: measure(problems.RECIPES[name](problems.RATES[name]), meshes)
    for name in names or problems.RECIPES
  }
  json.dump(rows, sys.stdout)


if __name__ == '__main__':
  main(*sys.argv[1:])
