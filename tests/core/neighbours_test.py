"""ScaledGD, LoRA-FA, LoRA-Pro, AltLoRA, LoRA-Muon, balancing: the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt import linalg, transforms
from tests import reference
from tests.core import problems
from tests.core.methods_test import gradients_of, trajectory


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def one_step(tx, pair, gradient):
  """(A', B') for numpy factors, tall."""
  params = problems.to_tree([pair])
  updates, _ = jax.jit(tx.update)(
    problems.to_tree([gradient]), jax.jit(tx.init)(params), params
  )
  return problems.from_tree(optax.apply_updates(params, updates))[0]


@pytest.fixture
def problem():
  rng = np.random.default_rng(2)
  [(a, b)] = problems.random_pairs(2)[:1]
  full = rng.normal(size=(len(a), len(b)))
  return a, b, full


def close(x, y, rtol=1e-9):
  np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


def test_scaled_gd_is_the_formula(problem):
  a, b, full = problem
  eye, reg, s = np.eye(a.shape[1]), 0.3, 2.0
  new_a, new_b = one_step(
    lora_opt.scaled_gd(0.1, reg=reg, lora_scale=s, weight_decay=0.5),
    (a, b),
    (s * full @ b, s * full.T @ a),
  )
  close(
    new_a, a - 0.1 * (full @ b @ np.linalg.inv(b.T @ b + reg * eye) / s + a / 2)
  )
  close(
    new_b,
    b - 0.1 * (full.T @ a @ np.linalg.inv(a.T @ a + reg * eye) / s + b / 2),
  )


def test_lora_fa_moves_b_towards_the_projection(problem):
  a, b, full = problem
  direction = transforms.on_lora_pairs(
    transforms.precondition_by_grams(0.0, lora_scale=2.0, factor='b')
  )
  tx = optax.chain(direction, optax.scale(-1.0))
  gradient = 2 * full @ b, 2 * full.T @ a
  new_a, new_b = one_step(tx, (a, b), gradient)
  close(new_a, a - gradient[0])
  # s A D^T is closest to the full gradient.
  step = b - new_b
  close(a.T @ (2 * a @ step.T - full), 0 * step.T)
  new_a, new_b = one_step(lora_opt.lora_fa(0.1), (a, b), gradient)
  close(new_a, a)
  assert np.linalg.norm(new_b - b) > 0.1


def test_lora_pro_is_closest_to_full_and_then_to_the_raw(problem):
  a, b, full = problem
  s = 2.0
  raw = s * full @ b, s * full.T @ a
  direction = transforms.on_lora_pairs(
    transforms.precondition_by_full_gradient(lora_scale=s)
  )
  tx = optax.chain(direction, optax.scale(-1.0))
  new = one_step(tx, (a, b), raw)
  g_a, g_b = a - new[0], b - new[1]
  # The residual is orthogonal to every step that factors can make.
  residual = s * (g_a @ b.T + a @ g_b.T) - full
  close(residual @ b, 0 * a)
  close(residual.T @ a, 0 * b)
  # Along X, which does not change the step of the product, the distance to
  # the raw gradients is stationary.
  close((g_a - raw[0]).T @ a, b.T @ (g_b - raw[1]))


@pytest.mark.parametrize('draw', range(3))
@pytest.mark.parametrize(
  'tx',
  [
    lora_opt.reflora(0.03, refactoring='real'),
    lora_opt.balanced(optax.adamw(0.03)),
  ],
)
def test_balancing_a_pair_of_more_ranks_than_outputs_converges(tx, draw):
  rng = np.random.default_rng(draw)
  target = jnp.asarray(rng.normal(size=(64, 2)))
  params = {
    'lora_a': jnp.asarray(rng.normal(size=(64, 8)) / 8),
    'lora_b': jnp.zeros((8, 2)),
  }

  def loss(p):
    return jnp.mean((p['lora_a'] @ p['lora_b'] - target) ** 2)

  def step(carry, _):
    params, state = carry
    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = tx.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), value

  _, losses = jax.lax.scan(step, (params, tx.init(params)), None, 200)
  assert losses.max() < 2 and losses[-1] < 1e-4


@pytest.mark.parametrize(
  ('inner', 'message'),
  [
    (lora_opt.lora_rite(0.1, low_memory=True), r'not a moment .*once they are'),
    (lora_opt.lora_muon(0.1), 'not a moment of Adam'),
    (lora_opt.shampoo(0.1), 'not a moment of Adam'),
    (lora_opt.polora(0.1), 'not a moment of Adam'),
    (lora_opt.lora_fa(0.1), 'one factor without the other'),
  ],
)
def test_balancing_refuses_what_it_would_leave_behind(inner, message):
  params = problems.to_tree(problems.random_pairs(2))
  with pytest.raises(ValueError, match=message):
    lora_opt.balanced(inner).init(params)


@pytest.mark.parametrize(
  'inner',
  [
    lora_opt.lora_rite(0.05),
    lora_opt.altlora(0.3),
    lora_opt.scaled_gd(0.3, reg=0.0),
  ],
)
def test_balancing_changes_nothing_where_nothing_can(inner):
  pairs = problems.random_pairs(2)
  plain, moved = (
    trajectory(x, pairs) for x in (inner, lora_opt.balanced(inner))
  )
  for one, two in zip(plain, moved, strict=True):
    for (a, b), (c, d) in zip(one, two, strict=True):
      close(a @ b.T, c @ d.T)


def test_lora_muon_steps_have_equal_singular_values(problem):
  a, b, full = problem
  tx = lora_opt.lora_muon(0.2, nesterov=False, max_relative_step=None)
  new_a, new_b = one_step(tx, (a, b), (full @ b, full.T @ a))
  for step in ((new_a - a) @ b.T, a @ (new_b - b).T):
    values = np.linalg.svd(step, compute_uv=False)
    close(values[: a.shape[1]], 0.1)
    close(values[a.shape[1] :], 0.0)


def test_lora_muon_without_momentum_is_imuon(problem):
  """msign(G_A S_B^(-1/2)) S_B^(-1/2), as its Corollary 4.1 has it."""
  a, b, full = problem
  tx = lora_opt.lora_muon(0.2, 0.0, max_relative_step=None)
  new = one_step(tx, (a, b), (full @ b, full.T @ a))
  for old, x, other, g in (
    (a, new[0], b, full @ b),
    (b, new[1], a, full.T @ a),
  ):
    root = reference.spd_power(other.T @ other, -0.5)
    u, _, vt = np.linalg.svd(g @ root, full_matrices=False)
    close(old - x, 0.1 * u @ vt @ root)


def test_altlora_takes_turns_and_carries_its_momentum():
  """Against the same in NumPy, on whole matrices."""
  rate, b1 = 0.2, 0.7
  [(a, b)] = pairs = problems.random_pairs(4)[:1]
  ours = trajectory(lora_opt.altlora(rate, b1), pairs, 6)
  full_a, full_b = np.zeros((len(a), len(b))), np.zeros((len(a), len(b)))
  for t, [mine] in enumerate(ours):
    [(g_a, g_b)] = gradients_of([(a, b)], 0, t)
    onto_a = a @ np.linalg.pinv(a)
    onto_b = b @ np.linalg.pinv(b)
    # Momenta as matrices of the product, projected to the current spans.
    full_a, full_b = full_a @ onto_b, onto_a @ full_b
    if t % 2:
      full_a = b1 * full_a + (1 - b1) * g_a @ np.linalg.pinv(b)
      new = a - rate * full_a @ np.linalg.pinv(b).T, b
    else:
      full_b = b1 * full_b + (1 - b1) * (g_b @ np.linalg.pinv(a)).T
      new = a, b - rate * full_b.T @ np.linalg.pinv(a).T
    a, b = new
    close(mine[0], a)
    close(mine[1], b)


def test_balancing_change_balances():
  [(a, b)] = problems.random_pairs(5)[:1]
  x, y = (linalg.gram(jnp.asarray(f)[None]) for f in (a, b))
  p, p_inverse = (np.asarray(m[0]) for m in linalg.balancing_change(x, y))
  close(p @ p_inverse, np.eye(4))
  left, right = a @ p, b @ p_inverse.T
  close(left.T @ left, right.T @ right)
  # At the least: |A P|^2 + |B P^-T|^2 is twice the nuclear norm of A B^T.
  nuclear = np.linalg.norm(a @ b.T, 'nuc')
  close(np.sum(left**2) + np.sum(right**2), 2 * nuclear)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_balancing_comes_to_rest(dtype):
  """Also for deficient factors, where it cannot balance."""
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(9, 3)), rng.normal(size=(8, 3))
  starts = {
    'b deficient': (a, b * [1, 1, 0]),
    'both deficient': (a * [1, 0, 0], b * [1, 0, 0]),
    'different': (a * [1, 0, 1], b * [1, 1, 0]),
    'zero': (a, 0 * b),
  }
  for x, y in starts.values():
    x, y = jnp.asarray(x, dtype)[None], jnp.asarray(y, dtype)[None]
    product = x @ y.mT
    for _ in range(60):
      p, p_inverse = linalg.balancing_change(linalg.gram(x), linalg.gram(y))
      x, y = x @ p, y @ p_inverse
    # Where a factor is zero the distance to rest halves, on a log scale.
    assert jnp.linalg.norm(p - jnp.eye(3, dtype=dtype)[None]) < 0.05
    # 60 changes of norm up to cutoff^(-1/4) = 30, at rest long before.
    error = jnp.linalg.norm(x @ y.mT - product)
    assert error <= 1e3 * jnp.finfo(dtype).eps * jnp.linalg.norm(product)


def test_balanced_sgd_is_virtual_refactoring():
  """Virtual and real refactoring: one path of A B^T under SGD."""
  pairs = problems.random_pairs(6)
  virtual = optax.chain(
    transforms.on_lora_pairs(transforms.precondition_by_refactoring()),
    optax.sgd(0.05),
  )
  real = lora_opt.balanced(optax.sgd(0.05))
  for one, two in zip(
    trajectory(virtual, pairs), trajectory(real, pairs), strict=True
  ):
    for (a1, b1), (a2, b2) in zip(one, two, strict=True):
      close(a1 @ b1.T, a2 @ b2.T)


def test_real_refactoring_moves_adams_moments():
  """A moment of a gradient becomes that of the refactored gradient."""
  [(a, b)] = problems.random_pairs(7)[:1]
  params = problems.to_tree([(a, b)])
  tx = lora_opt.reflora(0.0, refactoring='real')
  gradients = problems.to_tree(gradients_of([(a, b)], 0, 0))
  _, state = jax.jit(tx.update)(gradients, jax.jit(tx.init)(params), params)
  # Parameters stay unbalanced, so the next step changes coordinates again.
  _, after = tx.update(jax.tree.map(jnp.zeros_like, gradients), state, params)
  mu, moved = (
    problems.from_tree(optax.tree_utils.tree_get(s, 'mu'))
    for s in (state, after)
  )
  x, y = (linalg.gram(jnp.asarray(f)[None]) for f in (a, b))
  p, p_inverse = (np.asarray(m[0]) for m in linalg.balancing_change(x, y))
  close(moved[0][0], 0.9 * mu[0][0] @ p_inverse.T)
  close(moved[0][1], 0.9 * mu[0][1] @ p)
  nu, squares = (
    problems.from_tree(optax.tree_utils.tree_get(s, 'nu'))
    for s in (state, after)
  )
  close(squares[0][0], 0.999 * nu[0][0] @ p_inverse**2)
  assert np.all(squares[0][1] > 0)


def test_shampoo_whitens(problem):
  a, b, full = problem
  gradient = full @ b, full.T @ a
  new_a, _ = one_step(lora_opt.shampoo(1.0, eps=0.0), (a, b), gradient)
  step = new_a - a
  close(step.T @ step, len(a) * np.eye(a.shape[1]))


def test_lamb_and_muon_see_single_layers():
  """Scanned layers of different size each have their own trust ratio."""
  rng = np.random.default_rng(0)
  scales = np.array([1.0, 100.0])[:, None, None]
  params = {
    'lora_a': jnp.asarray(rng.normal(size=(2, 8, 3)) * scales),
    'lora_b': jnp.asarray(rng.normal(size=(2, 3, 5)) * scales),
  }
  gradients = jax.tree.map(jnp.cos, params)
  tx = lora_opt.lamb(0.1)
  updates, _ = jax.jit(tx.update)(gradients, jax.jit(tx.init)(params), params)
  for f in ('lora_a', 'lora_b'):
    step, size = (
      np.linalg.norm(x, axis=(1, 2)) for x in (updates[f], params[f])
    )
    close(step, 0.1 * size)


def test_unknown_refactoring_is_an_error():
  with pytest.raises(ValueError, match="'virtual' or 'real'"):
    lora_opt.reflora(1e-3, refactoring='reall')
  with pytest.raises(ValueError, match='blend_steps=3'):
    lora_opt.reflora(1e-3, refactoring='real', blend_steps=3)
