"""What is not finite never stays, is counted, and is seen in the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt import diagnostics
from tests.core import problems

each_recipe = pytest.mark.parametrize('name', problems.RECIPES)
some_recipes = problems.some_recipes()
ONE = {'lora_a': np.linspace(0.5, 1.5, 12).reshape(6, 2), 'lora_b': np.eye(2)}


def tree(dtype=jnp.float32):
  pair = {k: jnp.asarray(x, dtype) for k, x in ONE.items()}
  other = {k: jnp.asarray(np.flip(x) + 0.3, dtype) for k, x in ONE.items()}
  return {'one': pair, 'two': other, 'norm': jnp.ones(3, dtype)}


def poisoned(params, site, factor, value=np.nan):
  bad = params[site][factor].at[0, 0].set(value)
  return params | {site: params[site] | {factor: bad}}


def counts(state):
  return tuple(int(x) for x in diagnostics.skips(state))


def train(tx, params, gradients, state=None):
  """Parameters and state after these gradients."""
  init, update = problems.compiled(tx)
  state = init(params) if state is None else state
  for g in gradients:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


@some_recipes
def test_a_rate_that_is_bad_once(name):
  params = tree()

  def schedule(count):
    return jnp.array([1e-3, np.nan, np.inf, 1e-3, 1e-3])[count]

  factory = problems.RECIPES[name]
  tx = factory(schedule, weight_decay=0.1)
  params, state = train(tx, params, [params] * 4)
  assert problems.is_finite((params, state))
  # `balanced` does not know the learning rate of what is inside.
  assert counts(state) == (2, 0)
  again, state = train(tx, params, [params], state)
  assert np.any(again['one']['lora_b'] != params['one']['lora_b'])


@some_recipes
def test_a_bad_gradient_of_another_leaf(name):
  params = tree()
  tx = problems.RECIPES[name](1e-3, other=optax.adam(1e-2))
  bad = params | {'norm': params['norm'] * np.nan}
  after, state = train(tx, params, [params, bad])
  assert problems.is_finite((after, state))
  assert counts(state) == (1, 1)
  first, _ = train(tx, params, [params])
  jax.tree.map(np.testing.assert_array_equal, after, first)
  again, state = train(tx, after, [params], state)
  assert counts(state) == (1, 0)
  assert np.all(again['norm'] < after['norm'])


@some_recipes
def test_a_bad_parameter_stays_in_its_pair(name):
  tx = problems.RECIPES[name](1e-3, weight_decay=0.1)
  for bad in (np.nan, np.inf, 1e30):
    params = poisoned(tree(), 'one', 'lora_a', bad)
    after, state = train(tx, params, [tree()] * 2)
    assert problems.is_finite((state, after['two'], after['one']['lora_b']))
    assert not np.all(after['two']['lora_b'] == params['two']['lora_b'])
    good = tree() | {'one': after['one'] | {'lora_a': tree()['one']['lora_a']}}
    again, state = train(tx, good, [tree()], state)
    assert problems.is_finite((again, state))
    assert counts(state)[1] == 0


@some_recipes
def test_patience_ends_where_it_is_seen(name):
  params = tree()
  tx = problems.RECIPES[name](
    1e-3, other=optax.set_to_zero(), max_consecutive_skips=2
  )
  bad = poisoned(params, 'one', 'lora_b')
  after, state = train(tx, params, [bad, bad, params, bad, bad])
  assert problems.is_finite((after, state))
  assert counts(state) == (4, 2)
  after, state = train(tx, after, [bad], state)
  assert all(
    np.all(np.isnan(x)) for x in jax.tree.leaves((after['one'], after['two']))
  )
  assert problems.is_finite((after['norm'], state))


def orders(tx):
  """The wrappers that docs/libraries.md speaks of."""
  plain = {
    'clip in front': optax.chain(optax.clip_by_global_norm(1.0), tx),
    'apply_if_finite around': optax.apply_if_finite(tx, 3),
    'schedule_free around': optax.contrib.schedule_free(tx, 1e-3),
    'partition around': optax.partition(
      {'x': tx, 'y': optax.set_to_zero()},
      lambda tree: {k: 'y' if k == 'norm' else 'x' for k in tree},
    ),
    'multi steps around': optax.MultiSteps(
      tx, 2, should_skip_update_fn=optax.skip_not_finite
    ),
    'multi steps around a chain': optax.MultiSteps(
      optax.chain(optax.clip_by_global_norm(1.0), tx),
      2,
      should_skip_update_fn=optax.skip_not_finite,
    ),
    'multi steps inside a chain': optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.MultiSteps(
        tx, 2, should_skip_update_fn=optax.skip_not_finite
      ).gradient_transformation(),
    ),
    'masters around': lora_opt.float32_masters(tx),
  }
  return plain


@pytest.mark.parametrize('order', orders(optax.identity()))
def test_in_every_order_of_wrappers(order):
  params = tree()
  tx = orders(lora_opt.adamw(1e-2))[order]
  bad = poisoned(params, 'one', 'lora_b')
  after, state = train(tx, params, [params, bad, params, params, params])
  assert problems.is_finite((after, state))
  assert np.all(after['one']['lora_a'] < params['one']['lora_a'])
  assert counts(state)[1] == 0
  assert counts(state)[0] == (0 if 'multi steps' in order else 1)


def test_injected_rates_and_types():
  params = tree(jnp.bfloat16)
  make = optax.inject_hyperparams(lora_opt.adamw, hyperparam_dtype=jnp.float32)
  tx = make(lambda count: jnp.where(count == 1, jnp.nan, 1e-2))
  after, state = train(tx, params, [params] * 3)
  assert counts(state) == (1, 0)
  assert problems.is_finite((after, state.inner_state))
  tx = optax.inject_hyperparams(lora_opt.adamw)(1e-2)
  with pytest.raises(ValueError, match='comes in bfloat16'):
    tx.init(params)
  with pytest.raises(ValueError, match='comes in bfloat16'):
    jax.eval_shape(tx.init, params)


def test_multi_steps_without_its_own_guard_is_seen():
  params = tree()
  recipe = lora_opt.lora_plus(1e-3, max_consecutive_skips=3)
  tx = optax.MultiSteps(recipe, 2)
  bad = poisoned(params, 'one', 'lora_b')
  after, state = train(tx, params, [bad] + [params] * 5)
  assert problems.is_finite(after)
  assert counts(state) == (3, 3)
  after, _ = train(tx, after, [params] * 2, state)
  assert np.all(np.isnan(after['one']['lora_a']))


@some_recipes
def test_float16_gradients_do_not_overflow_inside(name):
  """B's gradient over the Gram matrix of a small A is beyond 65504."""
  params = tree(jnp.float16)
  params['one']['lora_a'] = (params['one']['lora_a'] * 1e-3).astype('float16')
  tx = problems.RECIPES[name](1e-3)
  updates, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
  assert problems.is_finite((updates, state))
  assert counts(state) == (0, 0)


def test_momentum_keeps_its_type():
  params = tree(jnp.bfloat16)
  tx = lora_opt.scaled_gd(1e-3, 0.9)
  state = tx.init(params)
  for dtype in (jnp.bfloat16, jnp.float32):
    gradients = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
    _, new = jax.jit(tx.update)(gradients, state, params)
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(
      lambda x: x.dtype, state
    )


@pytest.mark.parametrize('rate', [1.0, 0.5, 2.0])
def test_low_memory_with_decay_of_everything(rate):
  """At a rate times decay of one nothing of the factors is left."""
  params = tree()
  tx = lora_opt.lora_rite(rate, weight_decay=1.0, low_memory=True)
  after, state = train(tx, params, [params] * 4)
  assert problems.is_finite((after, state))
  assert counts(state) == (0, 0)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'learning_rate': np.nan}, 'learning_rate=nan must be finite'),
    ({'learning_rate': np.inf}, 'learning_rate=inf must be finite'),
    ({'learning_rate': -1e-3}, 'learning_rate=-0.001 must be finite and at'),
    ({'learning_rate': None}, 'learning_rate must be a number, not None'),
    ({'learning_rate': '1e-3'}, "must be a number, not '1e-3'"),
    ({'learning_rate': jnp.array(np.nan)}, 'learning_rate=nan'),
    ({'weight_decay': np.nan}, 'weight_decay=nan'),
    ({'max_consecutive_skips': -1}, 'max_consecutive_skips=-1'),
  ],
)
@each_recipe
def test_settings_out_of_range_are_refused(name, settings, message):
  with pytest.raises(ValueError, match=message):
    problems.RECIPES[name](**({'learning_rate': 1e-3} | settings))


@pytest.mark.parametrize(
  ('recipe', 'settings'),
  [
    ('adamw', {'b1': 1.0}),
    ('adamw', {'b2': -0.1}),
    ('lora_plus', {'eps': -1e-8}),
    ('lora_plus', {'lr_ratio': np.inf}),
    ('lora_rite', {'lora_scale': 0.0}),
    ('lora_rite', {'clip_norm': 0.0}),
    ('polora', {'damping': 0.0}),
    ('polora', {'damping': 1.0}),
    ('reflora', {'every': 0}),
    ('reflora', {'warmup_steps': -1}),
    ('scaled_gd', {'momentum': 1.0}),
    ('scaled_gd', {'reg': np.nan}),
  ],
)
def test_other_settings_too(recipe, settings):
  [(name, _)] = settings.items()
  with pytest.raises(ValueError, match=f'{recipe}: {name}=.* must be '):
    getattr(lora_opt, recipe)(1e-3, **settings)


@pytest.mark.parametrize(
  ('a', 'b', 'message'),
  [
    (np.ones((4, 0)), np.ones((0, 3)), r'q/lora_a \(4, 0\) is empty'),
    (np.ones((0, 2)), np.ones((2, 3)), r'q/lora_a \(0, 2\) is empty'),
    (np.ones((4, 2)), np.ones((2, 3), 'int8'), 'q/lora_b .* is int8'),
    (np.ones((4, 2), 'complex64'), np.ones((2, 3)), 'q/lora_a .* is complex64'),
  ],
)
@each_recipe
def test_pairs_that_cannot_be_trained_are_named(name, a, b, message):
  params = {'q': {'lora_a': a, 'lora_b': b}}
  with pytest.raises(ValueError, match=message):
    problems.RECIPES[name](1e-3).init(params)
