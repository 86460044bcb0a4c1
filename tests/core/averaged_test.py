"""An average of the parameters beside an optimizer."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt import transforms
from tests.core import problems


def path(tx, params, steps):
  """[parameters after each step], and the last state."""
  loss = problems.loss_fn
  targets = problems.targets_of(params)

  def step(carry, _):
    params, state = carry
    gradients = jax.grad(loss)(params, targets)
    updates, state = tx.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  (_, state), seen = jax.lax.scan(step, (params, tx.init(params)), length=steps)
  each = [jax.tree.map(operator.itemgetter(t), seen) for t in range(steps)]
  return each, state


@pytest.mark.parametrize('power', [0.0, 8.0])
def test_it_is_the_weighted_mean_of_all_steps(power):
  params = problems.small_tree(zero_b=False)
  tx = lora_opt.averaged(lora_opt.adamw(0.03), power=power)
  seen, state = path(tx, params, 20)
  # What each step keeps of the earlier ones, written out as one weight a step.
  shares = (power + 1) / (power + 1 + np.arange(20))
  weights = [s * np.prod(1 - shares[t + 1 :]) for t, s in enumerate(shares)]
  np.testing.assert_allclose(np.sum(weights), 1)
  if not power:
    np.testing.assert_allclose(weights, 1 / 20)
  expected = jax.tree.map(
    lambda *xs: np.tensordot(weights, np.asarray(xs, np.float64), 1), *seen
  )
  # Twenty roundings of float32.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    lora_opt.average_of(state, seen[-1]),
    expected,
  )


def test_most_of_it_lies_in_the_last_ninth():
  shares = 9 / (9 + np.arange(900))
  weights = [s * np.prod(1 - shares[t + 1 :]) for t, s in enumerate(shares)]
  # Of t^8 from 0.889 to 1: 1 - 0.889^9.
  np.testing.assert_allclose(np.sum(weights[-100:]), 0.65, atol=0.01)


@pytest.mark.parametrize('name', ['adamw', 'lora_rite', 'recommended'])
def test_the_optimizer_moves_as_it_does_alone(name):
  params = problems.small_tree()
  inner = problems.RECIPES[name](problems.RATES[name])
  alone, inner_state = path(inner, params, 5)
  beside, state = path(lora_opt.averaged(inner), params, 5)
  jax.tree.map(np.testing.assert_array_equal, alone[-1], beside[-1])
  jax.tree.map(np.testing.assert_array_equal, inner_state, state.inner_state)


def test_the_product_of_the_averages_does_not_depend_on_the_factorisation():
  params = problems.small_tree(zero_b=False)
  rng = np.random.default_rng(0)

  def other(pair):
    # Condition number below 2, so float32 loses little.
    rank = pair['lora_a'].shape[-1]
    s = np.eye(rank) + 0.3 * rng.normal(size=(rank, rank)) / np.sqrt(rank)
    return {
      'lora_a': jnp.asarray(pair['lora_a'] @ s, jnp.float32),
      'lora_b': jnp.asarray(np.linalg.inv(s) @ pair['lora_b'], jnp.float32),
    }

  changed = {
    'layers': {'q': other(params['layers']['q'])},
    'head': other(params['head']),
    'tail': other(params['tail']),
  }
  tx = lora_opt.averaged(lora_opt.lora_rite(0.05))

  def products(params):
    seen, state = path(tx, params, 20)
    average = lora_opt.average_of(state, seen[-1])
    return [
      pair['lora_a'] @ pair['lora_b']
      for pair in (average['layers']['q'], average['head'], average['tail'])
    ]

  for x, y in zip(products(params), products(changed), strict=True):
    # Twenty steps, each with a few roundings of 1e-7 and r x r roots.
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * np.abs(x).max())


def test_16_bit_factors_have_an_average_of_32_bits():
  params = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16), problems.small_tree(zero_b=False)
  )
  seen, state = path(lora_opt.averaged(optax.sgd(0.01)), params, 10)
  kinds = {x.dtype for x in jax.tree.leaves(state.average)}
  assert kinds == {jnp.dtype('float32')}
  average = lora_opt.average_of(state, seen[-1])
  assert {x.dtype for x in jax.tree.leaves(average)} == {jnp.dtype('bfloat16')}


def test_other_leaves_are_averaged_when_wanted():
  params = {
    'lora_a': jnp.ones((4, 2)),
    'lora_b': jnp.ones((2, 4)),
    'head': jnp.zeros(3),
  }
  ones = jax.tree.map(jnp.ones_like, params)
  for others, expected in ((False, -2.0), (True, -1.5)):
    tx = lora_opt.averaged(optax.sgd(1.0), power=0.0, others=others)
    state, moved = tx.init(params), params
    for _ in range(2):
      updates, state = jax.jit(tx.update)(ones, state, moved)
      moved = optax.apply_updates(moved, updates)
    average = lora_opt.average_of(state, moved)
    np.testing.assert_array_equal(average['head'], np.full(3, expected))
    np.testing.assert_array_equal(average['lora_a'], np.full((4, 2), -0.5))


def test_before_the_first_step_it_is_the_start():
  params = problems.small_tree()
  state = lora_opt.averaged(optax.sgd(1.0)).init(params)
  jax.tree.map(
    np.testing.assert_array_equal, lora_opt.average_of(state, params), params
  )


def test_a_skipped_step_spoils_nothing():
  params = problems.small_tree()
  tx = lora_opt.averaged(lora_opt.adamw(0.03))
  bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
  updates, state = jax.jit(tx.update)(bad, tx.init(params), params)
  average = lora_opt.average_of(state, params)
  jax.tree.map(np.testing.assert_array_equal, average, params)
  assert not np.any(updates['head']['lora_a'])


def test_it_is_found_in_chains_and_wrappers():
  params = problems.small_tree()
  inside = lora_opt.averaged(lora_opt.adamw(0.03))
  for tx in (
    optax.chain(optax.clip_by_global_norm(1.0), inside),
    optax.MultiSteps(inside, 2).gradient_transformation(),
    lora_opt.float32_masters(inside),
    optax.masked(inside, True),
  ):
    state = tx.init(params)
    assert transforms.keeps_average(state)
    jax.tree.map(
      np.testing.assert_array_equal, lora_opt.average_of(state, params), params
    )


def test_none_or_several_averages_are_refused():
  params = problems.small_tree()
  state = lora_opt.adamw(0.03).init(params)
  assert not transforms.keeps_average(state)
  with pytest.raises(ValueError, match='has 0 averages: wrap the whole'):
    lora_opt.average_of(state, params)
  twice = lora_opt.averaged(lora_opt.averaged(optax.sgd(0.1)))
  with pytest.raises(ValueError, match='has 2 averages'):
    lora_opt.average_of(twice.init(params), params)


def test_wrong_settings_are_refused():
  for power in (-1.0, float('nan'), float('inf')):
    with pytest.raises(ValueError, match=r'power=.* must be a finite number'):
      lora_opt.averaged(optax.sgd(0.1), power=power)
  tx = lora_opt.averaged(optax.sgd(0.1))
  params = problems.small_tree()
  with pytest.raises(ValueError, match='averaged needs the parameters'):
    tx.update(params, tx.init(params))
  with pytest.raises(ValueError, match='no LoRA pair found'):
    tx.init({'w': jnp.ones(3)})


def test_the_average_lies_where_its_parameters_lie():
  mesh = jax.make_mesh((1,), ('data',))
  spec = jax.sharding.PartitionSpec
  params = jax.tree.map(
    lambda x: jax.device_put(
      x,
      jax.sharding.NamedSharding(mesh, spec(*['data', None, None][-x.ndim :])),
    ),
    problems.small_tree(),
  )
  tx = lora_opt.averaged(lora_opt.lora_rite(1e-3))
  shardings = lora_opt.state_shardings(tx, params)
  shapes = jax.eval_shape(tx.init, params)
  assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
  jax.tree.map(
    lambda x, sharding: None if x.sharding == sharding else pytest.fail(),
    params,
    shardings.average,
  )
