"""One query against a cache, as jax's own attention computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.step_cache import StepCache, attend_to_cache


@pytest.mark.parametrize('scale', [None, 0.3])
@pytest.mark.parametrize('heads', [2, 6])
def test_attention_is_that_of_jax(heads, scale):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = ((3, 1, heads, 8), (3, 5, 2, 8), (3, 5, 2, 8))
  q, k, v = map(jax.random.normal, keys, shapes)
  visible = jnp.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], bool)
  expected = jax.nn.dot_product_attention(
    q, k, v, mask=visible[:, None, None], scale=scale
  )
  # The last token is appended, two slots stay empty.
  cache = StepCache.start(k[:, :4], v[:, :4], 3)
  cache = cache.append(k[:, 4:], v[:, 4:], jnp.array(4))
  seen = jnp.pad(visible, [(0, 0), (0, 2)])
  found = attend_to_cache(q, cache, seen[:, None], scale)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_and_sums_in_float32():
  q = jnp.ones((1, 1, 2, 4), jnp.bfloat16)
  k = jnp.ones((1, 600, 2, 4), jnp.bfloat16)
  v = jnp.full_like(k, 0.3)
  mask = jnp.ones((1, 1, 600), bool)
  out = attend_to_cache(q, StepCache.start(k, v, 0), mask)
  assert out.dtype == jnp.bfloat16
  # A mean of 600 equal numbers: two roundings of 8 bits.
  np.testing.assert_allclose(out.astype(jnp.float32), 0.3, rtol=2**-7)


def test_an_update_on_a_cpu_does_not_convert_the_whole_cache_of_16_bits():
  keys = jnp.zeros((2, 5, 1, 8), jnp.bfloat16)
  cache = StepCache.start(keys, keys, 4)
  one = jnp.ones((2, 1, 1, 8), jnp.bfloat16)

  def append(cache, keys, values, slot):
    return cache.append(keys, values, slot)

  jitted = jax.jit(append, donate_argnums=0)
  compiled = jitted.lower(cache, one, 2 * one, jnp.int32(5)).compile()
  assert 'f32[2,1,9,8]' not in compiled.as_text()
  assert 'f32[2,1,8,9]' not in compiled.as_text()
  new = compiled(cache, one, 2 * one, jnp.int32(5))
  written = np.zeros((2, 1, 9, 8))
  written[:, :, 5] = 1
  np.testing.assert_array_equal(new.keys.swapaxes(2, 3), written)
  np.testing.assert_array_equal(new.values, 2 * written)
