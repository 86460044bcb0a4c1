"""Layouts on trees of the real libraries.

flax and qwix run here. Of the other libraries, paths and shapes are in
tests/golden/layouts.json; `launch/test.sh --integrations` makes them again
with the libraries and runs their own forward pass.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

import lora_opt
from lora_opt import pairs
from tests.integrations.layouts import (
  check,
  flax_nnx,
  qwix_experts,
  qwix_models,
)

pytestmark = [
  # qwix uses two names that flax has deprecated.
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  pytest.mark.usefixtures('fast_compile'),
]
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'layouts.json'
RECORDED = json.loads(GOLDEN.read_text())
LIVE = {**flax_nnx.CASES, **qwix_models.CASES, **qwix_experts.CASES}


@pytest.mark.parametrize('name', LIVE)
def test_live(name):
  assert check.check(LIVE[name]()) == RECORDED[name]


@pytest.mark.parametrize('name', RECORDED)
def test_recorded(name):
  case = RECORDED[name]
  tree = {path: jnp.zeros(shape) for path, shape in case['leaves'].items()}
  layout = pairs.LORAX if case['layout'] == 'LORAX' else pairs.AUTO
  sites = pairs.find_sites(tree, layout)
  assert {s.layout.name for s in sites} == set(case['layout'].split(', '))
  assert {
    s.name: [list(s.batch_shape), s.fan_in, s.fan_out, s.rank] for s in sites
  } == case['sites']


@pytest.mark.parametrize('name', {**flax_nnx.CASES, **qwix_models.CASES})
def test_trains(name):
  case = LIVE[name]()
  target = case.forward(case.tree) + 0.5
  tx = lora_opt.lora_plus(0.02)  # each would do, and this compiles soon
  sites = pairs.find_sites(case.tree)
  paths = {path for s in sites for path in (s.a_path, s.b_path)}

  def loss(tree):
    return jnp.mean(jnp.square(case.forward(tree) - target))

  @jax.jit
  def step(tree, state):
    gradients = jax.grad(loss, allow_int=True)(tree)
    updates, state = tx.update(gradients, state, tree)
    tree = jax.tree.map(
      lambda p, u: p if u.dtype == jax.dtypes.float0 else p + u, tree, updates
    )
    return tree, state

  tree, state = case.tree, tx.init(case.tree)
  for _ in range(5):
    tree, state = step(tree, state)
  assert loss(tree) < 0.9 * loss(case.tree)
  before, after = dict(pairs.leaf_paths(case.tree)), pairs.leaf_paths(tree)
  for path, leaf in after:
    if path not in paths:
      assert (leaf == before[path]).all(), path
