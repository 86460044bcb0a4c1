"""The attention mask against its definition, and rotary positions."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lora_opt.models.rotary import rotate, rotation
from lora_opt.models.visibility import Visibility

pytestmark = pytest.mark.usefixtures('fast_compile')


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
  st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=6, max_size=6
  )
)
def test_mask_is_its_definition(labels):
  segment_ids, branches = np.array(labels).T
  seen = Visibility(jnp.array([segment_ids]), branches=jnp.array([branches]))
  mask = seen.mask()
  for query in range(6):
    for key in range(6):
      expected = (
        key <= query
        and segment_ids[key] == segment_ids[query]
        and branches[key] in (0, branches[query])
      )
      assert bool(mask[0, query, key]) == expected


def test_rotary_products_depend_on_distance_alone(tiny):
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def product(query_position, key_position):
    def at(p):
      return rotation(tiny.config, jnp.array([[p]]))

    return (rotate(q, at(query_position)) * rotate(k, at(key_position))).sum()

  np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)
  assert abs(product(7, 3) - product(7, 4)) > 1e-3


def test_rotary_pairs_are_half_a_head_apart(tiny):
  one = jnp.zeros((1, 1, 1, 8)).at[..., 1].set(1.0)
  turned = rotation(tiny.config, jnp.array([[3]]))
  rotated = rotate(one, turned)[0, 0, 0]
  expected = np.zeros(8)
  expected[1], expected[5] = np.cos(3 / 10), np.sin(3 / 10)
  np.testing.assert_allclose(rotated, expected, atol=1e-6)


def test_rope_divisors_slow_the_rotation(tiny):
  config = dataclasses.replace(tiny.config, rope_divisors=(1.0, 2.0, 4.0, 8.0))
  positions = jnp.array([[5]])
  turned = rotation(config, positions)
  expected = 5 * 10_000.0 ** -np.array([0, 0.25, 0.5, 0.75]) / [1, 2, 4, 8]
  angles = np.arctan2(turned.sin, turned.cos)[0, 0]
  angles += 2 * np.pi * np.round((expected - angles) / (2 * np.pi))
  np.testing.assert_allclose(angles, expected, rtol=1e-5)
