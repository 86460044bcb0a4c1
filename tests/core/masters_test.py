"""Factors in bfloat16 that follow copies in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt import diagnostics
from tests.core import problems

RATE = 1e-5  # below half a unit of rounding of nearly every element of A


def rounded_tree():
  params = problems.mixed_tree(zero_b=False, seed=3)
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def distance(params, start):
  return optax.tree.norm(
    jax.tree.map(
      lambda x, y: x.astype(jnp.float32) - y.astype(jnp.float32), params, start
    )
  )


@pytest.mark.parametrize('name', ['adamw', 'lora_rite', 'polora'])
def test_factors_follow_their_masters(name):
  start = rounded_tree()
  trainer = problems.Trainer(
    lora_opt.float32_masters(problems.RECIPES[name](problems.RATES[name]))
  )
  params, state, first, last = trainer.train(start, 40)
  assert last < 0.8 * first
  # A change to more than twice a number is itself rounded to 8 bits.
  of_a_step = problems.RATES[name] / 2**7
  jax.tree.map(
    lambda x, m: np.testing.assert_allclose(
      x.astype(jnp.float32), m, rtol=2**-8, atol=of_a_step
    ),
    params,
    state.masters,
  )
  again = jax.eval_shape(trainer.update, params, state, params)[1]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), again) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )


def test_small_steps_add_up():
  start = rounded_tree()
  recipe = lora_opt.adamw(RATE)
  plain, _, _, _ = problems.Trainer(recipe).train(start, 200)
  trainer = problems.Trainer(lora_opt.float32_masters(recipe))
  params, state, _, _ = trainer.train(start, 200)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), start)
  exact, _, _, _ = problems.Trainer(recipe).train(wide, 200)
  whole = distance(exact, start)
  assert distance(plain, start) < 0.7 * whole
  # Gradients at rounded factors differ a little.
  assert distance(state.masters, exact) < 0.05 * whole
  jax.tree.map(
    lambda x, m: np.testing.assert_array_equal(x, m.astype(x.dtype)),
    params,
    state.masters,
  )


def test_lost_updates_are_counted():
  params = rounded_tree()
  tx = lora_opt.adamw(RATE)
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  lost = float(diagnostics.lost_updates(params, updates))
  assert lost > 0.7
  summary = diagnostics.summarize(diagnostics.diagnose(params, updates))
  np.testing.assert_allclose(summary['lost_updates_mean'], lost, rtol=1e-6)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  assert float(diagnostics.lost_updates(wide, updates)) < 0.01
  tx = lora_opt.float32_masters(tx)
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert float(diagnostics.lost_updates(params, updates)) == 0


def test_what_others_move_counts():
  params = {
    'lora_a': jnp.ones((4, 2), jnp.bfloat16),
    'lora_b': jnp.ones((2, 4), jnp.bfloat16),
    'norm': jnp.ones(3, jnp.bfloat16),
  }
  tx = lora_opt.float32_masters(lora_opt.adamw(1e-3))
  updates, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
  assert state.masters['norm'] == optax.MaskedNode()
  moved = jax.tree.map(lambda x: 3 * x, params)
  _, state = tx.update(params, state, moved)
  np.testing.assert_allclose(state.masters['lora_a'], 3 - 1e-3, rtol=1e-5)
  assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype('bfloat16')}


def test_state_lies_where_its_parameters_lie():
  mesh = jax.make_mesh((1,), ('data',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  params = jax.device_put(rounded_tree(), sharding)
  tx = lora_opt.float32_masters(lora_opt.lora_rite(1e-3))
  shardings = lora_opt.state_shardings(tx, params)
  shapes = jax.eval_shape(tx.init, params)
  assert jax.tree.structure(shardings) == jax.tree.structure(shapes)


def test_parameters_are_needed():
  params = rounded_tree()
  tx = lora_opt.float32_masters(lora_opt.adamw(1e-3))
  with pytest.raises(ValueError, match='needs the parameters'):
    tx.update(params, tx.init(params))
