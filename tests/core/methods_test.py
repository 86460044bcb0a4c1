"""Against the NumPy reference, and the identities the papers state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt import linalg, transforms
from lora_opt.pairs import LoraPair
from tests import reference
from tests.core import problems


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def gradients_of(pairs, seed, t, scale=1.0):
  """Noisy gradients of the distance of scale A B^T to a random target."""
  rng = np.random.default_rng(seed)
  out = []
  for a, b in pairs:
    target = rng.normal(size=(len(a), len(b)))
    noise = np.random.default_rng([seed, t]).normal(size=target.shape)
    full = scale * (scale * a @ b.T - target + 0.3 * noise)
    out.append((full @ b, full.T @ a))
  return out


def trajectory(tx, pairs, steps=8, scale=1.0):
  """[pairs after each step], with our optimizer."""
  params = problems.to_tree(pairs)
  init, update = problems.compiled(tx)
  state = init(params)
  out = []
  for t in range(steps):
    gradients = gradients_of(problems.from_tree(params), 0, t, scale)
    updates, state = update(problems.to_tree(gradients), state, params)
    params = optax.apply_updates(params, updates)
    out.append(problems.from_tree(params))
  return out


def compare(tx, numpy_optimizer, rtol=1e-9):
  pairs = problems.random_pairs(3)
  ours = trajectory(tx, pairs)
  if isinstance(numpy_optimizer, reference.RefLoraS):
    pairs = numpy_optimizer.start(pairs)
  for t, mine in enumerate(ours):
    pairs = numpy_optimizer.step(pairs, gradients_of(pairs, 0, t))
    for x, y in zip(mine, pairs, strict=True):
      if isinstance(numpy_optimizer, reference.RefLoraS):
        # Ours rescales before a step, the reference after it.
        norm = np.linalg.norm(y[0]) / np.linalg.norm(x[0])
        x = x[0] * norm, x[1] / norm
      for f in (0, 1):
        np.testing.assert_allclose(x[f], y[f], rtol=rtol, atol=rtol)


RITE = [
  {},
  {'clip_norm': None, 'basis': 'polar'},
  {'clip_norm': None, 'cap_rms': 0.4, 'weight_decay': 0.1},
  {'skip_rms': 1.2, 'clip_norm': 0.5, 'rebalance': True},
  {'escaped_mass': True, 'b1': 0.8, 'b2': 0.95, 'eps': 1e-3, 'clip_norm': 9.0},
  {
    'escaped_mass': True,
    'rebalance': True,
    'cap_rms': 0.7,
    'skip_rms': 1.5,
    'weight_decay': 0.2,
    'b1': 0.0,
  },
]


@pytest.mark.parametrize('options', RITE, ids=str)
def test_lora_rite(options):
  ours = {
    k: v for k, v in options.items() if k not in ('basis', 'escaped_mass')
  }
  ours['escaped_mass'] = 'eigenvalues' if 'escaped_mass' in options else None
  compare(
    lora_opt.lora_rite(0.02, max_relative_step=None, rtol=0.0, **ours),
    reference.LoraRite(0.02, **options),
  )


REFLORA = [
  {},
  {'weight_decay': 0.1, 'warmup_steps': 2, 'every': 2},
  {'every': 3, 'b1': 0.8, 'b2': 0.95, 'eps': 1e-4},
]


@pytest.mark.parametrize('options', REFLORA, ids=str)
def test_reflora(options):
  compare(
    lora_opt.reflora(0.02, max_spread=None, **options),
    reference.RefLora(0.02, **options),
  )
  compare(
    lora_opt.reflora_s(0.02, **options), reference.RefLoraS(0.02, **options)
  )


def test_lora_plus_and_adamw():
  options = {'weight_decay': 0.1, 'b2': 0.9}
  compare(lora_opt.adamw(0.02, **options), reference.Adam(0.02, **options))
  options['lr_ratio'] = 7.0
  compare(lora_opt.lora_plus(0.02, **options), reference.Adam(0.02, **options))


def grams(pair):
  return [linalg.gram(jnp.asarray(x)[None]) for x in pair]


def geometric_mean(pair):
  s, s_inverse = linalg.geometric_mean_pair(*grams(pair))
  return np.asarray(s[0]), np.asarray(s_inverse[0])


def test_reflora_matrix_balances():
  a, b = problems.random_pairs(5)[0]
  s, s_inverse = geometric_mean((a, b))
  np.testing.assert_allclose(s @ s_inverse, np.eye(4), atol=1e-12)
  np.testing.assert_allclose(s @ a.T @ a @ s, b.T @ b, rtol=1e-11)
  p = np.linalg.cholesky(s)
  left, right = a @ p, b @ np.linalg.inv(p).T
  np.testing.assert_allclose(left.T @ left, right.T @ right, rtol=1e-11)
  np.testing.assert_allclose(left @ right.T, a @ b.T, rtol=1e-11)
  nuclear = np.linalg.norm(a @ b.T, 'nuc')
  total = np.trace(s @ a.T @ a) + np.trace(s_inverse @ b.T @ b)
  np.testing.assert_allclose(total, 2 * nuclear, rtol=1e-12)


def test_reflora_virtual_is_real_under_sgd():
  """One SGD step of the refactored pair moves delta_w as ours does."""
  pair = problems.random_pairs(6)[:1]
  tx = optax.chain(
    transforms.on_lora_pairs(transforms.precondition_by_refactoring()),
    optax.sgd(0.1),
  )
  [[ours]] = trajectory(tx, pair, steps=1)
  (a, b), [(g_a, g_b)] = pair[0], gradients_of(pair, 0, 0)
  p = np.linalg.cholesky(geometric_mean((a, b))[0])
  q = np.linalg.inv(p).T
  real = (a @ p - 0.1 * g_a @ q) @ (b @ q - 0.1 * g_b @ p).T
  np.testing.assert_allclose(ours[0] @ ours[1].T, real, rtol=1e-10)


@pytest.mark.parametrize('strength', [1.0, 1e3])
def test_reflora_spread_is_bounded(strength):
  """A direction far stronger in B than in A; S and S^-1 keep their traces."""
  [(a, b)] = problems.random_pairs(5)[:1]
  b = b * np.array([strength, 1, 1, 1])
  s = np.asarray(geometric_mean((a, b))[0])
  g_a, g_b = gradients_of([(a, b)], 0, 0)[0]

  def preconditioner(bound):
    tx = transforms.on_lora_pairs(
      transforms.precondition_by_refactoring(max_spread=bound)
    )
    params = problems.to_tree([(a, b)])
    new, _ = jax.jit(tx.update)(
      problems.to_tree([(g_a, g_b)]), jax.jit(tx.init)(params), params
    )
    [(a1, b1)] = problems.from_tree(new)
    return np.linalg.lstsq(g_a, a1)[0], np.linalg.lstsq(g_b, b1)[0]

  s_inverse, found = preconditioner(None)
  np.testing.assert_allclose(found, s, rtol=1e-8)
  bounded_inverse, bounded = preconditioner(16.0)
  spread = np.trace(s) * np.trace(s_inverse) / 16
  if strength == 1.0:
    assert spread < 16
    np.testing.assert_allclose(bounded, s, rtol=1e-8)
    return
  assert spread > 16
  for m in (bounded, bounded_inverse):
    # Its mean is as it was, times (kept + (1 - kept) / sqrt(spread)).
    kept = 16 / spread
    of = {id(bounded): s, id(bounded_inverse): s_inverse}[id(m)]
    expected = kept + (1 - kept) / np.sqrt(spread)
    np.testing.assert_allclose(np.trace(m) / np.trace(of), expected, rtol=1e-8)
  assert np.linalg.cond(bounded) < np.linalg.cond(s) / 10


def test_reflora_blends_in():
  pairs = problems.random_pairs(6)[:1]
  g = problems.to_tree(gradients_of(pairs, 0, 0))
  params = problems.to_tree(pairs)
  tx = transforms.on_lora_pairs(
    transforms.precondition_by_refactoring(warmup_steps=1, blend_steps=2)
  )
  state, seen = tx.init(params), []
  for _ in range(4):
    updates, state = tx.update(g, state, params)
    seen.append(np.asarray(updates['s0']['lora_a']))
  np.testing.assert_allclose(seen[0], g['s0']['lora_a'])
  np.testing.assert_allclose(seen[1], (seen[0] + seen[2]) / 2)
  np.testing.assert_allclose(seen[2], seen[3])


def test_lora_rite_without_memory_is_lora_muon():
  """b1 = b2 = eps = 0: sqrt(m) msign(G_A S^(-1/2)) S^(-1/2), S = B^T B."""
  pair = problems.random_pairs(7)[:1]
  tx = lora_opt.lora_rite(
    1.0, 0.0, 0.0, 0.0, clip_norm=None, max_relative_step=None
  )
  [[ours]] = trajectory(tx, pair, steps=1)
  (a, b), [(g_a, _)] = pair[0], gradients_of(pair, 0, 0)
  root = reference.spd_power(b.T @ b, -0.5)
  u, _, vt = np.linalg.svd(g_a @ root, full_matrices=False)
  step = np.sqrt(len(a)) * u @ vt @ root
  np.testing.assert_allclose(ours[0], a - step, rtol=1e-10, atol=1e-12)


def test_lora_rite_conventions():
  pair = problems.random_pairs(8)[:1]
  options = {'eps': 0.0, 'clip_norm': None, 'max_relative_step': None}

  def step(**more):
    [[new]] = trajectory(lora_opt.lora_rite(1.0, **options, **more), pair, 1)
    return new[0] - pair[0][0], new[1] - pair[0][1]

  plain, scaled = step(), step(lora_scale=4.0)
  summed = step(mean_square=False)
  for f, dim in ((0, 16), (1, 24)):
    np.testing.assert_allclose(scaled[f], plain[f] / 4, rtol=1e-10)
    np.testing.assert_allclose(summed[f], plain[f] / np.sqrt(dim), rtol=1e-9)


@pytest.mark.parametrize('rate', [1e-6, 1e-3])
def test_lora_rite_cold_start_does_not_throw_the_start_away(rate):
  """B = 0: the second step moves A by its own size, unless held back."""
  [(a, b)] = problems.random_pairs(9)[:1]

  def second_step(limit):
    tx = lora_opt.lora_rite(rate, max_relative_step=limit)
    (first, _), (second, _) = (
      x[0] for x in trajectory(tx, [(a, 0 * b)], steps=2)
    )
    np.testing.assert_array_equal(first, a)
    return np.linalg.norm(second - first) / np.linalg.norm(a)

  assert second_step(None) > 0.3
  assert 0.01 < second_step(0.1) < 0.1


def test_lora_plus_gives_embeddings_a_rate_of_their_own():
  [(a, b)] = problems.random_pairs(10)[:1]
  pair = problems.to_tree([(a, b)])['s0']
  params = {'model': {'embed_tokens': pair, 'shared': pair, 'shared_mlp': pair}}
  tx = lora_opt.lora_plus(0.1, lr_ratio=4.0, embedding_ratio=0.01)
  updates, _ = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)

  def size(name, factor):
    return float(jnp.max(jnp.abs(updates['model'][name][factor])))

  for name in ('embed_tokens', 'shared'):
    np.testing.assert_allclose(size(name, 'lora_a'), 0.001, rtol=1e-6)
    np.testing.assert_allclose(size(name, 'lora_b'), 0.001, rtol=1e-6)
  np.testing.assert_allclose(size('shared_mlp', 'lora_a'), 0.1, rtol=1e-6)
  np.testing.assert_allclose(size('shared_mlp', 'lora_b'), 0.4, rtol=1e-6)


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('model/embed_tokens', True),
    ('embeddings/word_embeddings', True),
    ('embeddings/position_embeddings', True),
    ('transformer/wte', True),
    ('decoder/token_embedder/embedding', True),
    ('embedder/input_embedding', True),
    ('tok_embeddings', True),
    ('Embed_0/embedding', True),
    ('shared', True),
    ('gpt_neox/embed_in', True),
    ('text_embedding_model/q', False),
    ('text_embedding_model/layers/0/attention/q_proj', False),
    ('embedder/mm_input_projection', False),
    ('embeddings/LayerNorm', False),
    ('shared_mlp', False),
    ('mlp/shared_expert', False),
    ('shared/up_proj', False),
    ('embedding_projection', False),
    ('vision/patch_embedding', False),
    ('unembed', False),
    ('embedded_attention/wo', False),
  ],
)
def test_an_embedding_is_told_by_the_own_name_of_the_module(path, expected):
  params = {path: {'lora_a': jnp.ones((4, 2)), 'lora_b': jnp.ones((2, 4))}}
  tx = lora_opt.lora_plus(0.1, embedding_ratio=0.01)
  updates, _ = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
  size = 0.001 if expected else 0.1
  np.testing.assert_allclose(updates[path]['lora_a'], -size, rtol=1e-6)


def test_lora_plus_under_sgd_is_a_larger_start():
  """From B = 0: plain LoRA at sqrt(eta_A eta_B), A0 ratio^(1/4)."""
  ratio, rate = 16.0, 0.01
  [(a, b)] = problems.random_pairs(10)[:1]
  plus = optax.chain(
    transforms.on_lora_pairs(transforms.scale_by_lora_plus(ratio)),
    optax.sgd(rate),
  )
  ours = trajectory(plus, [(a, 0 * b)])
  plain = trajectory(optax.sgd(rate * ratio**0.5), [(a * ratio**0.25, 0 * b)])
  for [(a1, b1)], [(a2, b2)] in zip(ours, plain, strict=True):
    np.testing.assert_allclose(a1 @ b1.T, a2 @ b2.T, rtol=1e-10, atol=1e-13)


def test_lora_plus_one_step_split():
  """f = (b a^T) x: df has one linear term per rate, and their product."""
  rng = np.random.default_rng(0)
  a, b, x = rng.normal(size=(6, 1)), rng.normal(size=(1, 1)), rng.normal(size=6)
  rate, ratio, u = 0.1, 3.0, 0.7  # u = dL/df
  tx = optax.chain(
    transforms.on_lora_pairs(transforms.scale_by_lora_plus(ratio)),
    optax.sgd(rate),
  )
  params = problems.to_tree([(a, b)])
  g = problems.to_tree([(u * b.item() * x[:, None], u * (x @ a)[:, None])])
  updates, _ = jax.jit(tx.update)(g, jax.jit(tx.init)(params), params)
  [(a1, b1)] = problems.from_tree(optax.apply_updates(params, updates))
  ax, bb, xx = (x @ a).item(), b.item(), x @ x
  expected = (
    -rate * u * bb**2 * xx
    - rate * ratio * u * ax**2
    + rate**2 * ratio * u**2 * bb * ax * xx
  )
  np.testing.assert_allclose((x @ a1 @ b1.T).item() - ax * bb, expected)


@pytest.mark.parametrize('dead', ['b', 'a', 'partly', 'padded'])
def test_geometric_mean_of_deficient_factors_is_usable(dead):
  a, b = (x.copy() for x in problems.random_pairs(11)[0])
  if dead == 'b':
    b[:] = 0
  elif dead == 'a':
    a[:] = 0
  elif dead == 'partly':
    b[:, 1] = b[:, 0]
  else:
    a[:, 3] = b[:, 3] = 0
  s, s_inverse = geometric_mean((a, b))
  np.testing.assert_allclose(s @ s_inverse, np.eye(4), atol=1e-10)
  assert np.linalg.cond(s) < 1e3
  if dead in 'ab':
    np.testing.assert_allclose(s, np.eye(4))
  if dead == 'padded':
    alone, _ = geometric_mean((a[:, :3], b[:, :3]))
    np.testing.assert_allclose(s[:3, :3], alone, rtol=1e-9)
    np.testing.assert_allclose(s[3, :3], 0, atol=1e-12)


def test_state_of_pairs_is_float64_in_float64():
  params = LoraPair(jnp.ones((1, 4, 2)), jnp.ones((1, 3, 2)))._asdict()
  params = {'lora_a': params['a'], 'lora_b': params['b'].mT}
  state = lora_opt.lora_rite(1.0).init(params)
  kinds = {x.dtype for x in jax.tree.leaves(state) if x.ndim > 1}
  assert kinds == {jnp.dtype('float64')}
