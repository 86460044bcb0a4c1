"""PoLoRA: against NumPy in float64, and what the paper says of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lora_opt
from lora_opt import transforms
from lora_opt.training import schedules
from tests import reference
from tests.core import deadlock_test, problems
from tests.core.methods_test import compare, gradients_of, trajectory

METHODS = ['lapack', 'products']


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'b1': 0.0, 'b2': 0.5, 'weight_decay': 0.1},
    {'eps': 1e-3, 'damping': 0.05},
    {'half_each': True},
    {'half_each': True, 'max_relative_step': 0.003, 'b2': 0.5},
    {'half_each': True, 'max_relative_step': None, 'damping': 0.1},
  ],
  ids=str,
)
def test_the_reference(options, method):
  tx = lora_opt.polora(0.05, **options)
  # Norms by products are exact but for singular values that nearly agree.
  compare(
    transforms.with_matrix_method(tx, method),
    reference.Polora(0.05, **options),
    1e-8,
  )


def first_update(tx, pairs, gradients, method='platform'):
  tx = transforms.with_matrix_method(tx, method)
  params = problems.to_tree(pairs)
  updates, state = jax.jit(tx.update)(
    problems.to_tree(gradients), tx.init(params), params
  )
  return problems.from_tree(updates), state


@pytest.mark.parametrize('method', METHODS)
def test_a_step_is_as_long_as_the_rate(method):
  pairs, rate, scale = problems.random_pairs(3), 0.02, 4.0
  tx = lora_opt.polora(rate, lora_scale=scale)
  updates, _ = first_update(tx, pairs, gradients_of(pairs, 0, 0), method)
  for (a, b), (step_a, step_b) in zip(pairs, updates, strict=True):
    length = rate / scale / (np.linalg.norm(a, 2) + np.linalg.norm(b, 2))
    for step in (step_a, step_b):
      np.testing.assert_allclose(np.linalg.norm(step, 2), length, rtol=1e-6)
    moved = scale * (step_a @ b.T + a @ step_b.T)
    assert np.linalg.norm(moved, 2) <= rate * (1 + 1e-6)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('limit', [None, 0.1, 1e-3])
def test_each_factor_takes_half(method, limit):
  pairs, rate, scale = problems.random_pairs(3), 0.02, 4.0
  tx = lora_opt.polora(
    rate, lora_scale=scale, half_each=True, max_relative_step=limit
  )
  updates, _ = first_update(tx, pairs, gradients_of(pairs, 0, 0), method)
  for (a, b), (step_a, step_b) in zip(pairs, updates, strict=True):
    size_a, size_b, length_a, length_b = (
      np.linalg.norm(x, 2) for x in (a, b, step_a, step_b)
    )
    np.testing.assert_allclose(scale * size_a * length_b, rate / 2, rtol=1e-6)
    allowed = np.inf if limit is None else limit * size_a
    expected = min(rate / scale / size_b / 2, allowed)
    np.testing.assert_allclose(length_a, expected, rtol=1e-6)


def test_recommended_is_polora_with_a_schedule():
  steps, rate, scale = 40, 0.3, 2.0
  tx = lora_opt.recommended(rate, steps, lora_scale=scale)
  peer = lora_opt.polora(
    schedules.warmup_cosine(rate, steps),
    b1=0.8, damping=0.1, lora_scale=scale, half_each=True,
  )  # fmt: skip
  pairs = problems.random_pairs(3)
  for ours, theirs in zip(
    trajectory(tx, pairs, steps, scale),
    trajectory(peer, pairs, steps, scale),
    strict=True,
  ):
    for x, y in zip(
      jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True
    ):
      np.testing.assert_array_equal(x, y)


def test_recommended_ends_at_zero():
  pairs = problems.random_pairs(3)
  path = trajectory(lora_opt.recommended(0.3, 5, lora_scale=1.0), pairs, 7)
  before, after = (jax.tree.leaves(path[t]) for t in (4, 6))
  for x, y in zip(before, after, strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((lambda step: 0.1, 10), 'learning_rate is a schedule'),
    ((0.1,), 'learning_rate=0.1 would never decay'),
    ((0.1, 0), 'steps=0 must be'),
    ((0.1, -3), 'steps=-3 must be'),
    ((0.1, 2.5), 'steps=2.5'),
    ((float('nan'), 10), 'learning_rate=nan'),
  ],
)
def test_recommended_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    lora_opt.recommended(*arguments, lora_scale=1.0)


@pytest.mark.parametrize('method', METHODS)
def test_from_zero_b_eps_is_of_no_account(method):
  pairs = [(a, 0 * b) for a, b in problems.random_pairs(3)]
  found = [
    first_update(
      lora_opt.polora(0.02, eps=eps), pairs, gradients_of(pairs, 0, 0), method
    )[0]
    for eps in (0.0, 1e-12)
  ]
  for (a, _), (step_a, step_b), (_, other) in zip(pairs, *found, strict=True):
    np.testing.assert_array_equal(step_a, 0)
    np.testing.assert_allclose(step_b, other, rtol=1e-6, atol=1e-12)
    # All of A B^T's step, and all of the rate, is B's.
    length = np.linalg.norm(step_b, 2) * np.linalg.norm(a, 2)
    np.testing.assert_allclose(length, 0.02, rtol=1e-6)


@pytest.mark.parametrize('start', ['general', 'zero'])
def test_no_gradient_no_step(start):
  pairs = problems.random_pairs(3)
  if start == 'zero':
    pairs = [(0 * a, 0 * b) for a, b in pairs]
  nothing = [(0 * a, 0 * b) for a, b in pairs]
  updates, state = first_update(lora_opt.polora(0.02), pairs, nothing)
  assert not any(np.any(x) for pair in updates for x in pair)
  assert problems.is_finite(state)
  assert lora_opt.diagnostics.skips(state) == (0, 0)


def test_the_size_of_gradients_does_not_count():
  """But for eps, which is of the size of a squared gradient."""
  pairs, tx = problems.random_pairs(3), lora_opt.polora(0.05, eps=0.0)
  one, other = (trajectory_with(tx, pairs, factor) for factor in (1.0, 1e-5))
  for x, y in zip(one, other, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)


def trajectory_with(tx, pairs, factor):
  """All factors after some steps of gradients times a factor."""
  params = problems.to_tree(pairs)
  state, update = tx.init(params), jax.jit(tx.update)
  for t in range(4):
    gradients = [
      (factor * g_a, factor * g_b)
      for g_a, g_b in gradients_of(problems.from_tree(params), 0, t)
    ]
    updates, state = update(problems.to_tree(gradients), state, params)
    params = optax.apply_updates(params, updates)
  return [x for pair in problems.from_tree(params) for x in pair]


@pytest.mark.parametrize('turn', ['signed permutation', 'rotation'])
def test_the_metric_knows_the_long_axes(turn):
  """Inputs may change places and signs; turned, they are other inputs."""
  [(a, b)] = problems.random_pairs(3)[:1]
  rng = np.random.default_rng(0)
  matrix, _ = np.linalg.qr(rng.normal(size=(len(a), len(a))))
  if turn == 'signed permutation':
    matrix = np.eye(len(a))[rng.permutation(len(a))]
    matrix = matrix * rng.choice([-1, 1], len(a))
  paths = []
  for turned in (np.eye(len(a)), matrix):
    params = problems.to_tree([(turned @ a, b)])
    tx = lora_opt.polora(0.05)
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(4):
      [(now_a, now_b)] = problems.from_tree(params)
      [(g_a, g_b)] = gradients_of([(turned.T @ now_a, now_b)], 0, t)
      gradients = problems.to_tree([(turned @ g_a, g_b)])
      updates, state = update(gradients, state, params)
      params = optax.apply_updates(params, updates)
    [(now_a, now_b)] = problems.from_tree(params)
    paths.append(turned.T @ now_a @ now_b.T)
  gap = np.linalg.norm(paths[0] - paths[1]) / np.linalg.norm(paths[0])
  assert gap < 1e-10 if turn == 'signed permutation' else gap > 1e-4


def test_the_state_is_half_of_adams_and_two_vectors():
  params = problems.mixed_tree()
  state = jax.eval_shape(lora_opt.polora(0.1).init, params)
  numbers = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  vectors = sum(
    site.batch * (site.fan_in + site.fan_out)
    for site in lora_opt.pairs.find_sites(params)
  )
  assert numbers == sum(x.size for x in jax.tree.leaves(params)) + vectors


def test_vectors_lie_where_their_factors_lie():
  mesh = jax.make_mesh((1, 1), ('data', 'rank'))

  def shape(dims, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=sharding)

  params = {
    'lora_a': shape((3, 16, 4), None, 'data', 'rank'),
    'lora_b': shape((3, 4, 8), None, 'rank'),
  }
  tx = transforms.on_lora_pairs(transforms.scale_by_polora())
  shardings = lora_opt.state_shardings(tx, params).inner_state
  assert shardings.mu == jax.tree.map(lambda x: x.sharding, params)
  assert shardings.nu['lora_a'].spec == PartitionSpec(None, 'data', None)
  assert shardings.nu['lora_b'].spec == PartitionSpec(None, None, None)


# With much damping, for gradients of rank one without noise.
DAMPED = {'damping': 0.1}


def test_it_comes_to_rest_with_a_rate_that_decays():
  steps, ends = 150, {}
  for name, rate in (
    ('constant', 3.0),
    ('decaying', optax.cosine_decay_schedule(3.0, steps)),
  ):
    trainer = problems.Trainer(lora_opt.polora(rate, **DAMPED))
    params = problems.mixed_tree()
    _, _, first, last = trainer.train(params, steps, rank=1)
    ends[name] = last / first
  assert ends['decaying'] < 3e-4 < ends['constant'] < 0.05, ends


def test_gradients_of_rank_one_without_noise_are_whitened_away():
  """As the docstring warns: a step is largest where the gradient is least."""
  [(a, b)] = problems.random_pairs(3, [(12, 8, 4)])
  v = np.geomspace(0.2, 1.0, 8) * [1, -1, -1, 1, 1, -1, 1, 1]
  gradients = problems.to_tree([(0 * a, np.outer(v, np.ones(12) @ a))])
  params = problems.to_tree([(a, 0 * b)])
  tx = lora_opt.polora(0.02)
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(2):  # of which the second knows p, as v^2
    updates, state = update(gradients, state, params)
  [(_, step)] = problems.from_tree(updates)
  rows = np.linalg.norm(step, axis=1) * np.abs(v)
  # Damping of 1e-4 beside 0.2^2.
  np.testing.assert_allclose(rows, rows[0], rtol=5e-3)


@pytest.mark.parametrize(
  'dtype',
  [
    'float32',
    pytest.param('bfloat16', marks=pytest.mark.long),
    pytest.param('float16', marks=pytest.mark.long),
  ],
)
def test_it_trains_from_every_deficient_start(dtype, method):
  steps, last = 150, {}
  rate = optax.cosine_decay_schedule(3.0, steps)
  with jax.enable_x64(False):
    tx = lora_opt.polora(rate, **DAMPED)
    trainer = problems.Trainer(transforms.with_matrix_method(tx, method))
    for kind in ('full rank', *deadlock_test.KINDS):
      start = deadlock_test.start(kind, jnp.dtype(dtype))
      _, _, first, end = trainer.train(start, steps, rank=1)
      last[kind] = end / first
  limit = 1e-3 if dtype == 'float32' else 1e-2
  assert all(x < limit for x in last.values()), last
