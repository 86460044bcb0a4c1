"""Factors of any size: float32 gives what float64 gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt import diagnostics, linalg
from tests.core import problems

# Of A and B. Squares of 1e15 times a few dozen elements stay in float32.
SCALES = [(1e15, 1e-15), (1e-15, 1e15), (1e15, 1e15), (1e-15, 1e-15)]


def updates_and_skips(tx, a, b, gradients, dtype):
  """Updates of every step, and how many were skipped; the pair stays."""
  params = {'lora_a': jnp.asarray(a, dtype), 'lora_b': jnp.asarray(b, dtype)}
  state, step, out = tx.init(params), jax.jit(tx.update), []
  for full in gradients:
    of_factors = {
      'lora_a': jnp.asarray(full @ b.T, dtype),
      'lora_b': jnp.asarray(a.T @ full, dtype),
    }
    updates, state = step(of_factors, state, params)
    out.append(jax.tree.map(np.asarray, updates))
  return out, int(diagnostics.skips(state).total)


@problems.some_recipes()
def test_factors_of_any_size(name):
  """Gradients are those of a loss whose gradient at W is of size one."""
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(12, 3)) / 4, rng.normal(size=(3, 8)) / 4
  gradients = rng.normal(size=(2, 12, 8))
  if name == 'lora_rite low memory':  # which needs its updates applied
    gradients = gradients[:1]
  tx = problems.RECIPES[name](1e-3)
  for of_a, of_b in SCALES:
    arguments = tx, of_a * a, of_b * b, gradients
    ours, skipped = updates_and_skips(*arguments, jnp.float32)
    with jax.enable_x64(True):
      exact, _ = updates_and_skips(*arguments, jnp.float64)
    assert skipped == 0
    for step, reference in zip(ours, exact, strict=True):
      for factor, size in (('lora_a', of_a), ('lora_b', of_b)):
        gap = np.linalg.norm(step[factor] - reference[factor])
        # Roundings of 6e-8 times the conditions of the factors, some 10, and
        # their squares; what is lost in the factor itself does not count.
        allowed = 1e-3 * np.linalg.norm(reference[factor]) + 1e-6 * size
        assert gap < allowed, (of_a, of_b, factor)


@pytest.mark.parametrize(
  'function', [linalg.geometric_mean_pair, linalg.balancing_change]
)
@pytest.mark.parametrize('scales', SCALES)
def test_means_of_gram_matrices_scale(function, scales):
  """S of (x c, y d) is sqrt(d / c) times that of (x, y)."""
  rng = np.random.default_rng(1)
  x, y = (m.mT @ m for m in rng.normal(size=(2, 1, 9, 3)).astype(np.float32))
  of_x, of_y = (np.float32(s) ** 2 for s in scales)
  ratio = scales[1] / scales[0]
  if function is linalg.balancing_change:
    ratio = np.clip(ratio**0.5, 1 / linalg.MAX_CHANGE, linalg.MAX_CHANGE)
  plain = function(jnp.asarray(x), jnp.asarray(y))
  scaled = function(jnp.asarray(x * of_x), jnp.asarray(y * of_y))
  if function is linalg.balancing_change and scales[0] != scales[1]:
    eye = np.eye(3)[None]
    plain = eye, eye  # nothing else is left of so large a change
  for one, other, factor in zip(scaled, plain, (ratio, 1 / ratio), strict=True):
    np.testing.assert_allclose(
      one, factor * other, rtol=1e-4, atol=1e-4 * factor
    )
