"""Stacked experts and adapters: equal to separate ones, still where unused."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.core import problems

some_recipes = problems.some_recipes()
# Recipes that bring factors to balance also where there is no gradient.
REFACTORING = ('balanced', 'reflora real', 'reflora_s')
ADAPTERS, EXPERTS, RANK = 2, 3, 4


def tree():
  """As SkyRL keeps them; the second adapter has rank 2, padded with zeros."""
  rng = np.random.default_rng(0)
  a = rng.normal(size=(ADAPTERS, EXPERTS, 9, RANK)) / 3
  b = rng.normal(size=(ADAPTERS, EXPERTS, RANK, 7)) / 3
  a[1, ..., 2:], b[1, ..., 2:, :] = 0, 0
  return {
    'up': {'lora_A': jnp.asarray(a, 'f4'), 'lora_B': jnp.asarray(b, 'f4')}
  }


def gradients(params, used):
  """Of |a b - target|^2, where `used` (adapters, experts) says so."""
  a, b = params['up']['lora_A'], params['up']['lora_B']
  error = (
    a @ b - jnp.linspace(-1, 1, 9 * 7, dtype=a.dtype).reshape(9, 7)[None, None]
  )
  error = error * jnp.asarray(used, a.dtype)[..., None, None]
  return {'up': {'lora_A': error @ b.mT, 'lora_B': a.mT @ error}}


def make(name):
  options = {'clip_norm': None} if 'lora_rite' in name else {}
  return problems.RECIPES[name](problems.RATES[name] / 10, **options)


def run(tx, params, useds):
  step = jax.jit(lambda g, s, p: tx.update(g, s, p))
  state = jax.jit(tx.init)(params)
  for used in useds:
    updates, state = step(gradients(params, used), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  return params['up']


@some_recipes
def test_an_expert_is_stepped_as_if_alone(name):
  params, tx = tree(), make(name)
  every = np.ones((ADAPTERS, EXPERTS))
  whole = run(tx, params, [every] * 3)
  for i in ((0, 0), (1, 2)):
    at = np.s_[i[0] : i[0] + 1, i[1] : i[1] + 1]
    alone = run(
      tx, jax.tree.map(lambda x, at=at: x[at], params), [every[at]] * 3
    )
    for factor, x in alone.items():
      # Float32 sums in another order, over three steps.
      np.testing.assert_allclose(whole[factor][at], x, rtol=1e-3, atol=1e-5)
  assert not np.any(whole['lora_A'][1, ..., 2:])
  assert not np.any(whole['lora_B'][1, ..., 2:, :])


@some_recipes
def test_what_never_had_a_gradient_does_not_move(name):
  params = tree()
  used = np.array([[1, 0, 1], [0, 0, 0]])
  out = run(make(name), params, [used] * 3)
  before, after = (
    np.asarray(p['lora_A'] @ p['lora_B']) for p in (params['up'], out)
  )
  moved = np.abs(after - before).max(axis=(2, 3))
  assert np.all(moved[used == 1] > 1e-4)
  # A refactoring keeps the product up to rounding; others do nothing at all.
  assert np.all(moved[used == 0] <= (1e-6 if name in REFACTORING else 0))
