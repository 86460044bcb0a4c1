"""What every recipe must do, whatever its algorithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import lora_opt
from tests.core import problems

each_recipe = pytest.mark.parametrize('name', problems.RECIPES)
some_recipes = problems.some_recipes()


@pytest.fixture
def recipe(method):
  """Makes the recipe of a name at its rate."""
  return lambda name, **options: problems.recipe(
    name, problems.RATES[name], method=method, **options
  )


def types(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def assert_close(x, y, **tolerances):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerances), x, y
  )


def sites_of(params):
  return [*params['layers'].values(), params['head'], params['tail']]


@each_recipe
def test_learns_from_zero_b(name):
  params = problems.mixed_tree()
  floor = problems.reachable(name, params)
  params, state, first, last = problems.trainer(name).train(params, 40)
  assert last - floor < 0.6 * (first - floor)
  assert problems.is_finite((params, state))


@some_recipes
def test_jit_is_eager(recipe, name):
  params = {'head': problems.mixed_tree(zero_b=False)['head']}
  tx = recipe(name)
  one, _ = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
  two, _ = tx.update(params, tx.init(params), params)
  assert_close(one, two, rtol=1e-4, atol=1e-6)


@some_recipes
def test_compiles_once_with_stable_types(recipe, name):
  params = problems.small_tree()
  trainer = problems.Trainer(recipe(name))
  state = trainer.init(params)
  _, new = trainer.update(params, state, params)
  for _ in range(2):
    assert types(new) == types(state)
    _, new = trainer.update(params, new, params)
  assert trainer.update._cache_size() == 1
  shapes = jax.eval_shape(trainer.tx.init, params)
  assert jax.tree.structure(shapes) == jax.tree.structure(state)


@each_recipe
def test_types_stay_where_pairs_are_of_several(recipe, name):
  with jax.enable_x64(True):
    params = {
      key: {
        'lora_a': jnp.ones((8, 2), dtype),
        'lora_b': jnp.ones((2, 4), dtype),
      }
      for key, dtype in (('one', jnp.float32), ('two', jnp.float64))
    }
    tx = recipe(name)
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, params, state, params)
    assert types(new) == types(state)
    assert types(updates) == types(params)


@some_recipes
def test_bfloat16_in_and_out(name):
  params = problems.mixed_tree(jnp.bfloat16)
  trainer = problems.trainer(name)
  floor = problems.reachable(name, params)
  out, state, first, last = trainer.train(params, 40)
  assert last - floor < 0.7 * (first - floor)
  assert problems.is_finite((out, state))
  updates, _ = jax.eval_shape(trainer.tx.update, params, state, params)
  assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype('bfloat16')}


@each_recipe
@pytest.mark.parametrize('start', ['low rank gradient', 'deficient', 'padded'])
def test_rank_deficiency_does_not_stop_training(name, start):
  params = problems.mixed_tree(zero_b=start != 'deficient')
  for site in sites_of(params):
    if start == 'deficient':  # both factors have rank one
      for f, one in (('lora_a', np.s_[..., :1]), ('lora_b', np.s_[..., :1, :])):
        site[f] = jnp.broadcast_to(site[f][one], site[f].shape)
    if start == 'padded':  # the last direction is not there at all
      site['lora_a'] = site['lora_a'].at[..., -1:].set(0)
  trainer = problems.low_rank_trainer(name)
  floor = problems.reachable(name, params, rank=1)
  params, state, first, last = trainer.train(params, 150, rank=1)
  assert problems.is_finite((params, state))
  assert last - floor < 0.05 * (first - floor)
  if start == 'padded':
    for site in sites_of(params):
      assert not np.any(site['lora_a'][..., -1:])
      assert not np.any(site['lora_b'][..., -1:, :])


@some_recipes
def test_bad_gradient_changes_nothing(name):
  params = problems.mixed_tree(zero_b=False)
  trainer = problems.trainer(name)
  _, before = trainer.update(params, trainer.init(params), params)
  for bad in (np.nan, np.inf, -np.inf, 1e30):
    gradients = dict(params)
    poisoned = params['head']['lora_a'].at[0, 0].set(bad)
    gradients['head'] = params['head'] | {'lora_a': poisoned}
    updates, after = trainer.update(gradients, before, params)
    assert not any(np.any(x) for x in jax.tree.leaves(updates))
    guard, guarded = (
      s.inner_states['lora'].inner_state for s in (before, after)
    )
    assert_close(guarded.inner_state, guard.inner_state, rtol=0)
    assert int(guarded.skipped) == int(guard.skipped) + 1
    assert lora_opt.diagnostics.skips(after) == (1, 1)


@some_recipes
def test_leaves_outside_pairs_rest_or_go_to_other(recipe, name):
  params = {'head': problems.mixed_tree()['head'], 'norm': jnp.ones(5)}

  def step(**options):
    init, update = problems.compiled(recipe(name, **options))
    return update(params, init(params), params)[0]

  updates = step()
  assert not np.any(updates['norm'])
  updates = step(other=optax.sgd(0.5))
  np.testing.assert_allclose(updates['norm'], -0.5)


@some_recipes
def test_stacked_is_looped(recipe, name):
  """Scanned layers, equal sites and single ones give the same numbers."""
  options = {'clip_norm': None} if 'lora_rite' in name else {}
  tx = recipe(name, **options)
  rng = np.random.default_rng(0)
  a, b = (
    jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(3, 9, 2), (3, 2, 7)]
  )
  scanned = {'x': {'lora_a': a, 'lora_b': b}}
  listed = {f'x{i}': {'lora_a': a[i], 'lora_b': b[i]} for i in range(3)}

  def direction(tree):
    init, update = problems.compiled(tx)
    return update(tree, init(tree), tree)[0]

  one, many = direction(scanned), direction(listed)
  for i in range(3):
    alone = direction({'x': listed[f'x{i}']})['x']
    for f in ('lora_a', 'lora_b'):
      close = {'rtol': 2e-4, 'atol': 1e-5}
      np.testing.assert_allclose(one['x'][f][i], alone[f], **close)
      np.testing.assert_allclose(many[f'x{i}'][f], alone[f], **close)


@each_recipe
def test_state_has_the_shape_that_tools_expect(recipe, name):
  params = problems.small_tree()
  tx = recipe(name)
  state = jax.jit(tx.init)(params)
  seen = []

  def is_masked(x):
    return isinstance(x, optax.MaskedNode)

  def add_one(x, p):
    if is_masked(x):
      return x
    # Vectors along a factor have its other axis with length one.
    sizes = zip(x.shape, p.shape, strict=True)
    seen.append(all(size in (1, whole) for size, whole in sizes))
    return x + 1

  mapped = optax.tree_map_params(
    tx,
    add_one,
    state,
    params,
    transform_non_params=lambda x: x,
    is_leaf=is_masked,
  )
  assert seen or name in problems.WITHOUT_STATE
  assert all(seen)
  assert jax.tree.structure(mapped) == jax.tree.structure(state)
  paths = jax.tree_util.tree_flatten_with_path(state)[0]
  for path, leaf in paths:
    assert 'State' not in jax.tree_util.keystr(path)
    if leaf.ndim >= 2 and leaf.shape[-1] == leaf.shape[-2] in (2, 4):
      # Rules by path must see that it belongs to LoRA.
      assert 'lora' in path[-2].key and '/' not in path[-2].key


@some_recipes
def test_inside_and_around_optax(name):
  """chain, masked, apply_if_finite, MultiSteps, inject_hyperparams at once."""
  params = {'head': problems.mixed_tree()['head']}
  factory = optax.inject_hyperparams(problems.RECIPES[name])
  tx = factory(
    optax.constant_schedule(2 * problems.RATES[name]), weight_decay=0.01
  )
  tx = optax.chain(optax.clip_by_global_norm(1.0), tx, optax.scale(0.5))
  tx = optax.masked(tx, lambda tree: jax.tree.map(lambda _: True, tree))
  tx = optax.MultiSteps(optax.apply_if_finite(tx, 3), 2)
  trainer = problems.Trainer(tx.gradient_transformation())
  floor = problems.reachable(name, params)
  _, state, first, last = trainer.train(params, 60)
  assert last - floor < 0.8 * (first - floor)
  assert problems.is_finite(state)
  rate = optax.tree_utils.tree_get(state, 'hyperparams')['learning_rate']
  np.testing.assert_allclose(rate, 2 * problems.RATES[name], rtol=1e-6)


@some_recipes
def test_weight_decay_may_be_a_schedule(name):
  params = {'head': problems.mixed_tree(zero_b=False)['head']}
  rate = problems.RATES[name]

  def step_of(decay):
    tx = problems.RECIPES[name](rate, weight_decay=decay)
    return tx.update(params, tx.init(params), params)[0]

  number, schedule = step_of(0.1), step_of(lambda count: 0.1 / (1 + count))
  jax.tree.map(np.testing.assert_array_equal, number, schedule)
  without = jax.tree.leaves(step_of(0.0))
  pairs = zip(without, jax.tree.leaves(number), strict=True)
  assert any(np.any(x != y) for x, y in pairs)


@some_recipes
def test_schedule_and_mu_dtype_and_mask(name):
  params = {'head': problems.mixed_tree(zero_b=False)['head']}
  options = {
    'weight_decay': 0.1,
    'mu_dtype': jnp.bfloat16,
    'mask': lambda tree: jax.tree.map(lambda _: True, tree),
  }
  if name == 'lora_rite low memory':  # which refuses masks
    del options['mask']
  tx = problems.RECIPES[name](optax.linear_schedule(0.0, 1.0, 10), **options)
  state = jax.jit(tx.init)(params)
  if name not in problems.WITHOUT_STATE:
    assert jnp.dtype('bfloat16') in {x.dtype for x in jax.tree.leaves(state)}
  updates, new = jax.jit(tx.update)(params, state, params)
  assert types(new) == types(state)
  # At a learning rate of zero a pair may be refactored, and no more.
  moved = optax.apply_updates(params, updates)['head']
  params = params['head']
  assert_close(
    moved['lora_a'] @ moved['lora_b'],
    params['lora_a'] @ params['lora_b'],
    rtol=1e-5,
    atol=1e-6,
  )


@each_recipe
def test_orbax_round_trip(name, tmp_path):
  params = problems.mixed_tree()
  trainer = problems.trainer(name)
  params, state, _, _ = trainer.train(params, 3)
  with ocp.StandardCheckpointer() as saver:
    saver.save(tmp_path / 'state', state)
    saver.wait_until_finished()
    abstract = jax.tree.map(
      lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding),
      jax.eval_shape(trainer.tx.init, params),
      state,
    )
    again = saver.restore(tmp_path / 'state', abstract)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  assert_close(again, state, rtol=0)


@each_recipe
def test_user_mistakes_are_named(recipe, name):
  tx = recipe(name)
  a = jnp.zeros((8, 2))
  with pytest.raises(ValueError, match='no LoRA pair'):
    tx.init({'w': a})
  with pytest.raises(ValueError, match=r'q/lora_a \(8, 2\) has no partner'):
    tx.init({'q': {'lora_a': a}})
  with pytest.raises(ValueError, match=r'\(3, 4\) do not fit together'):
    tx.init({'q': {'lora_a': a, 'lora_b': jnp.zeros((3, 4))}})


@pytest.mark.parametrize(
  'other',
  [
    {'lora_a': jnp.ones((8, 2), 'bfloat16'), 'lora_b': jnp.ones((2, 4))},
    {'lora_a': jnp.ones((8, 3)), 'lora_b': jnp.ones((3, 4))},
  ],
  ids=['type', 'rank'],
)
def test_a_state_of_other_parameters_is_refused(other):
  tx = lora_opt.lora_rite(1e-3)
  state = tx.init({'lora_a': jnp.ones((8, 2)), 'lora_b': jnp.ones((2, 4))})
  with pytest.raises(ValueError, match='state belongs to other parameters'):
    tx.update(other, state, other)


def test_params_are_needed():
  params = problems.mixed_tree()
  tx = lora_opt.lora_rite(1e-3)
  with pytest.raises(ValueError, match='need the parameters'):
    tx.update(params, tx.init(params))


@pytest.mark.parametrize('name', ['adamw', 'lora_plus', 'reflora_s'])
def test_moments_are_updated_in_place(name):
  """The step holds no copy of the moments, which would double its time."""
  params = {
    'lora_a': jnp.ones((8, 512, 16)),
    'lora_b': jnp.ones((8, 16, 512)),
  }
  tx = problems.RECIPES[name](1e-3)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, gradients):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  compiled = step.lower(params, tx.init(params), params).compile()
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  assert compiled.memory_analysis().temp_size_in_bytes < size / 20
