"""Accuracy over condition numbers, ranks and precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_opt
from lora_opt import linalg
from tests import reference
from tests.core import problems

# Once compiled for each list of shapes.
orthonormal_bases = jax.jit(linalg.orthonormal_bases)

pytestmark = pytest.mark.usefixtures('strict')


def conditioned(condition, shape=(200, 8), seed=0):
  """A tall matrix with singular values from 1 down to 1 / condition."""
  rng = np.random.default_rng(seed)
  u, _ = np.linalg.qr(rng.normal(size=shape))
  v, _ = np.linalg.qr(rng.normal(size=(shape[1], shape[1])))
  return (u * np.geomspace(1, 1 / condition, shape[1])) @ v


# Orthogonality: a few eps times the squared condition on the fast path, times
# the condition on the slow one (from about 30).
@pytest.mark.parametrize(
  ('condition', 'tolerance'),
  [(1.0, 2e-6), (10.0, 5e-5), (30.0, 2e-4), (1e3, 2.5e-4), (5e3, 1.2e-3)],
)
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_bases_in_float32(condition, tolerance, scale):
  x = jnp.asarray(conditioned(condition) * scale, jnp.float32)[None]
  other = jnp.ones((2, 5, 1))  # of another shape and rank, in the same batch
  bases, inverses, grams = orthonormal_bases([x, other])
  u, t = bases[0][0], inverses[0][0]
  np.testing.assert_allclose(u.T @ u, np.eye(8), atol=tolerance)
  np.testing.assert_allclose(x[0] @ t, u, atol=max(tolerance, 1e-4))
  np.testing.assert_allclose(grams[0][0], x[0].T @ x[0], atol=1e-6 * scale**2)
  np.testing.assert_allclose(bases[1], 1 / np.sqrt(5), rtol=1e-5)


def test_dead_directions_have_no_basis():
  x = conditioned(10.0)
  x[:, 5] = x[:, 0]
  x[:, 6] = 0
  x = jnp.asarray(x, jnp.float32)[None]
  [u], [t], _ = orthonormal_bases([x])
  projector = np.asarray(u[0].T @ u[0])
  # eps over the floor of the first pass, 1e-3.
  np.testing.assert_allclose(projector @ projector, projector, atol=1e-4)
  np.testing.assert_allclose(np.trace(projector), 6, atol=1e-4)
  # R^-1 is the pseudo-inverse of R: nothing of the dead directions in it.
  null = np.zeros((8, 2))
  null[[0, 5], 0] = 1, -1
  null[6, 1] = 1
  np.testing.assert_allclose(null.T @ np.asarray(t[0]), 0, atol=1e-4)
  [u], [t], _ = orthonormal_bases([0 * x])
  assert not np.any(u) and not np.any(t)


@pytest.mark.parametrize(('condition', 'tolerance'), [(1e1, 1e-4), (1e3, 2e-3)])
def test_lora_rite_in_float32_follows_float64(condition, tolerance):
  """Displacement after three steps, relative, from ill-conditioned factors."""
  a = conditioned(3.0, (40, 8), 1)
  b = conditioned(condition, (60, 8), 2)
  targets = np.random.default_rng(3).normal(size=(3, 40, 60))
  exact = reference.LoraRite(1e-3)
  tx = lora_opt.lora_rite(
    1e-3, max_relative_step=None, escaped_mass=None, rtol=0.0
  )
  ours = jax.tree.map(
    lambda x: x.astype(jnp.float32), problems.to_tree([(a, b)])
  )
  state, pairs = tx.init(ours), [(a, b)]
  start = a @ b.T
  for target in targets:
    [(x, y)] = pairs
    pairs = exact.step(pairs, [(-target @ y, -target.T @ x)])
    [(x, y)] = problems.from_tree(ours)
    g = problems.to_tree([(-target @ y, -target.T @ x)])
    g = jax.tree.map(lambda x: x.astype(jnp.float32), g)
    updates, state = jax.jit(tx.update)(g, state, ours)
    ours = jax.tree.map(jnp.add, ours, updates)
  [(x, y)], [(x64, y64)] = problems.from_tree(ours), pairs
  moved = x64 @ y64.T - start
  wide = x.astype(np.float64) @ y.astype(np.float64).T - start
  gap = np.linalg.norm(wide - moved) / np.linalg.norm(moved)
  assert gap < tolerance


def test_packing_pads_and_cuts():
  matrices = [jnp.ones((2, 3, 3)), 2 * jnp.ones((1, 2, 2))]
  packing = linalg.Packing.of(matrices)
  packed = packing.pack(matrices)
  assert packed.shape == (3, 3, 3)
  np.testing.assert_array_equal(packed[2, :, 2], 0)
  for x, y in zip(packing.unpack(packed), matrices, strict=True):
    np.testing.assert_array_equal(x, y)
  np.testing.assert_array_equal(packing.repeat([5, 7]), [5, 5, 7])


@pytest.mark.parametrize('size', [1, 2, 5])
def test_inverse_square_root(size):
  x = np.random.default_rng(0).normal(size=(4, 9, size))
  x = jnp.asarray(np.einsum('bdr,bds->brs', x, x), jnp.float32)
  root = linalg.psd_inverse_sqrt(x)
  eye = linalg.matmul(linalg.matmul(root, x), root)
  expected = np.broadcast_to(np.eye(size), eye.shape)
  np.testing.assert_allclose(eye, expected, atol=1e-5)
