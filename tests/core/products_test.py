"""What is done by products and rotations where LAPACK is not at hand.

References are eigenvectors in float64 of the very float32 matrices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt import linalg
from lora_opt.linalg import _products as products

METHODS = ['lapack', 'products']
EPS = float(np.finfo(np.float32).eps)

pytestmark = pytest.mark.usefixtures('strict')


def spectra(values, count=8, seed=0):
  """(count, r, r) of these eigenvalues, float32, and of a random basis."""
  rng = np.random.default_rng(seed)
  rank = len(values)
  q, _ = np.linalg.qr(rng.normal(size=(count, rank, rank)))
  x = (q * np.asarray(values)) @ np.swapaxes(q, 1, 2)
  return jnp.asarray((x + np.swapaxes(x, 1, 2)) / 2, jnp.float32)


def exact(x, function):
  """A function of eigenvalues, of each matrix, in float64."""
  values, vectors = np.linalg.eigh(np.asarray(x, np.float64))
  return (vectors * function(values)[:, None]) @ np.swapaxes(vectors, 1, 2)


def distance(x, y):
  """The largest relative distance of matrices."""
  gap = np.linalg.norm(np.asarray(x, np.float64) - y, axis=(1, 2))
  return np.max(gap / np.linalg.norm(y, axis=(1, 2)))


@pytest.mark.parametrize('rank', [1, 2, 3, 16, 33, 64])
@pytest.mark.parametrize('condition', [1.0, 1e2, 1e6, 1e12])
def test_rotations_find_eigenvectors(rank, condition):
  x = spectra(np.geomspace(1, 1 / condition, rank))
  values, vectors = (
    np.asarray(m, np.float64)
    for m in jax.jit(linalg.eigh, static_argnums=1)(x, 'products')
  )
  # A few roundings for each of the turns that a column takes part in.
  tolerance = 4 * EPS * max(rank, 4)
  turned = np.swapaxes(vectors, 1, 2)
  np.testing.assert_allclose(
    turned @ vectors, np.broadcast_to(np.eye(rank), x.shape), atol=tolerance
  )
  np.testing.assert_allclose(
    (vectors * values[:, None]) @ turned, x, atol=tolerance
  )


def test_rotations_in_float64_and_of_zeros():
  with jax.enable_x64(True):
    x = np.zeros((2, 5, 5))
    x[0] = np.cov(np.random.default_rng(0).normal(size=(5, 40)))
    values, vectors = map(np.asarray, linalg.eigh(jnp.asarray(x), 'products'))
  np.testing.assert_allclose(
    (vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2), x, atol=1e-14
  )
  np.testing.assert_array_equal(vectors[1] @ vectors[1].T, np.eye(5))


# The root of the condition, which a float32 Gram matrix of a factor has
# squared, times eps; by products a little more, growing with the condition.
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
  ('condition', 'tolerance'), [(1e1, 5e-6), (1e3, 1e-4), (1e5, 2e-3)]
)
@pytest.mark.parametrize('scale', [1e-8, 1.0, 1e8])
def test_inverse_roots(condition, tolerance, scale, method):
  x = scale * spectra(np.geomspace(1, 1 / condition, 16))
  root = jax.jit(lambda x: linalg.inverse_root(x, rtol=1e-6, method=method))(x)
  expected = exact(x, lambda v: 1 / np.sqrt(v))
  assert distance(root, expected) <= tolerance


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('damping', [1e-4, 0.1])
@pytest.mark.parametrize('scale', [1e-8, 1.0, 1e8])
def test_damped_inverse_roots_leave_nothing_dead(damping, scale, method):
  values = [1.0, 0.5, 1e-2, 1e-4, 1e-9, 0.0]
  x = jnp.float32(scale) * spectra(values)
  root = jax.jit(lambda x, d: linalg.damped_inverse_root(x, d, method=method))
  expected = exact(x, lambda v: 1 / np.sqrt(np.maximum(v, 0) + damping * scale))
  # Roundings of the largest over what is added, magnified by products.
  assert distance(root(x, damping), expected) <= 8 * EPS / damping + 1e-5


@pytest.mark.parametrize('method', METHODS)
def test_the_floor_of_damping(method):
  x = spectra([1e-6, 1e-9])
  root = linalg.damped_inverse_root(x, 1e-4, 1e-2, method)
  assert distance(root, exact(x, lambda v: 1 / np.sqrt(v + 1e-2))) < 1e-5
  for floor, size in ((0.0, 1.0), (4.0, 0.5)):
    root = linalg.damped_inverse_root(0 * x, 1e-4, floor, method)
    np.testing.assert_allclose(root, size * np.eye(2)[None] + 0 * x, rtol=1e-5)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('eps', [1e-6, 1e-3, 1.0])
def test_inverse_roots_with_a_shift_and_eps(eps, method):
  x = spectra(np.geomspace(1e-2, 1e-6, 8))
  shift = jnp.asarray(np.geomspace(1e-7, 1e-3, 8), jnp.float32)
  root = linalg.inverse_root(x, shift=shift, eps=eps, method=method)
  raised = x + shift[:, None, None] * jnp.eye(8)[None]
  assert distance(root, exact(raised, lambda v: 1 / (np.sqrt(v) + eps))) < 1e-4


@pytest.mark.parametrize('method', METHODS)
def test_settings_may_be_traced(method):
  """As by `optax.inject_hyperparams`."""
  x = spectra([1.0, 1e-1, 1e-3, 1e-6])

  def root(rtol, eps):
    return linalg.inverse_root(x, rtol=rtol, eps=eps, method=method)

  np.testing.assert_allclose(
    jax.jit(root)(1e-4, 1e-2), root(1e-4, 1e-2), rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('eps', [0.0, 1e-3])
def test_dead_directions_take_nothing_in(eps, method):
  live = [1.0, 1e-1, 1e-3]
  x = spectra([*live, 1e-8, 0.0])
  root = linalg.inverse_root(x, rtol=1e-6, eps=eps, method=method)

  def expected(v):
    alive = v > 1e-6
    return np.where(alive, 1 / (np.sqrt(np.where(alive, v, 1)) + eps), 0)

  # Where eigenvectors are known to eps over the gap of 1e-3.
  assert distance(root, exact(x, expected)) < 1e-3
  np.testing.assert_array_equal(
    linalg.inverse_root(0 * x, eps=eps, method=method), 0 * x
  )


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(('condition', 'tolerance'), [(1e1, 1e-5), (1e3, 5e-3)])
def test_geometric_means(condition, tolerance, method):
  x = spectra(np.geomspace(30, 30 / condition, 8))
  y = spectra(np.geomspace(1e-3, 1e-3 / condition, 8), seed=1)
  s, s_inverse = linalg.geometric_mean_pair(x, y, method)
  root, inverse_root = exact(x, np.sqrt), exact(x, lambda v: 1 / np.sqrt(v))
  middle = exact(root @ np.asarray(y, np.float64) @ root, np.sqrt)
  expected = inverse_root @ middle @ inverse_root
  assert distance(s, expected) <= tolerance
  assert distance(s_inverse, np.linalg.inv(expected)) <= tolerance


def test_geometric_means_of_deficient_and_zero_matrices():
  x = spectra([2.0, 1.0, 0.5, 0.0])
  y = spectra([1.0, 0.3, 0.0, 0.0], seed=1)
  zero = jnp.zeros_like(x)
  for pair in ((x, y), (y, x), (x, zero), (zero, y), (zero, zero)):
    a, b = (linalg.geometric_mean_pair(*pair, m) for m in METHODS)
    for ours, theirs in zip(b, a, strict=True):
      # Dead directions are known to the root of the cut-off.
      assert distance(ours, np.asarray(theirs, np.float64)) < 1e-3


@pytest.mark.parametrize('method', METHODS)
def test_regular_inverses_whiten_or_say_that_they_do_not(method):
  x = spectra(np.geomspace(3, 3e-2, 6))
  packing = linalg.Packing((8,), (6,))
  inverse, good = linalg.regular_inverses(packing, x, method)
  whitened = inverse.mT @ x @ inverse
  np.testing.assert_allclose(whitened, np.broadcast_to(np.eye(6), x.shape),
                             atol=1e-4)  # fmt: skip
  assert good
  for bad in (spectra(np.geomspace(1, 1e-6, 6)), 0 * x, x.at[3].set(jnp.nan)):
    assert not linalg.regular_inverses(packing, bad, method)[1]


@pytest.mark.parametrize('method', METHODS)
def test_positive_equations_are_solved(method):
  x = spectra(np.geomspace(5, 5e-3, 6))
  y = spectra(np.geomspace(1, 1e-1, 6), seed=1)
  solution = linalg.solve_positive(x, y, method)
  exact_solution = np.linalg.solve(*(np.asarray(m, np.float64) for m in (x, y)))
  assert distance(solution, exact_solution) < 1e3 * EPS


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('shift', [0.0, 1e-4, 10.0])
def test_inverses_with_and_without_a_shift(shift, method):
  x = spectra([2.0, 1.0, 1e-2, 0.0])
  found = linalg.inverse(x, shift=shift, method=method)

  def expected(v):
    alive = (v > 1e-6) | (shift > 0)
    return np.where(alive, 1 / np.where(alive, v + shift, 1), 0)

  # Rounding of the largest, which the smallest that counts magnifies.
  tolerance = 40 * EPS / (shift or 1e-2)
  assert distance(found, exact(x, expected)) < max(tolerance, 10 * EPS)
  zero = linalg.inverse(0 * x, shift=shift, method=method)
  want = np.eye(4) / shift if shift else np.zeros((4, 4))
  np.testing.assert_allclose(zero, np.broadcast_to(want, x.shape), rtol=1e-5)


@pytest.mark.parametrize('cut', [1e-6, 1 / 128, 1 / 32])
def test_a_projector_tells_apart_what_is_half_and_twice_the_cut(cut):
  values = [1.0, 30 * cut if cut < 0.01 else 0.9, 2 * cut, cut / 2, 0.0]
  x = spectra(values)
  found = products.projector(x, cut)
  # Rounding of the largest against the gap.
  tolerance = 1e-5 + 8 * EPS / cut
  expected = exact(x, lambda v: np.where(v > cut, 1.0, 0.0))
  np.testing.assert_allclose(found, expected, atol=tolerance)


def test_the_largest_eigenvalue():
  for values in ([3.0, 2.0, 1e-9], [1.0] * 16, [1e-30, 0.0], [1e30] * 3, [0.0]):
    found = products.largest_eigenvalue(spectra(values))
    want = max(values) or 1.0
    np.testing.assert_array_less(want * (1 - 1e-5), found)
    np.testing.assert_array_less(found, want * 1.05)


@pytest.mark.parametrize(
  ('values', 'tolerance'),
  [
    ([3.0, 2.0, 1e-9], 1e-6),
    ([1.0] * 64, 1e-5),
    (np.linspace(0.9, 1.0, 64), 1e-3),
    ([1.0] + 63 * [0.998], 1.1e-3),
    ([1e-30, 0.0], 1e-6),
    ([1e30] * 3, 1e-6),
    ([0.0, 0.0], 0.0),
  ],
)
def test_the_largest_eigenvalue_is_never_too_large(values, tolerance):
  found = jax.jit(linalg.largest_eigenvalue)(spectra(values))
  want = np.full(8, max(values))
  np.testing.assert_allclose(found, want, rtol=tolerance)
  assert np.all(found <= want * (1 + 1e-5))


def test_a_method_that_does_not_exist():
  with pytest.raises(ValueError, match="method='qr': must be 'platform'"):
    linalg.eigh(jnp.ones((1, 1, 1)), 'qr')
