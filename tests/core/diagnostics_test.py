"""Diagnostics against NumPy on the products themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_opt
from lora_opt import diagnostics
from tests.core import problems


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64, jnp.bfloat16])
def test_agrees_with_singular_values_of_the_products(dtype):
  with jax.enable_x64(dtype == jnp.float64):
    before = problems.mixed_tree(dtype, seed=0, zero_b=False)
    step = problems.mixed_tree(dtype, seed=5, zero_b=False)
    after = jax.tree.map(jnp.add, before, step)
    # What was added, in the rounding of the parameters.
    step = jax.tree.map(jnp.subtract, after, before)
    ours = jax.jit(diagnostics.diagnose)(after, step)
    sites = lora_opt.pairs.find_sites(after)
    # Gram matrices round relative to their largest entry; bf16 is computed
    # in float32, and after - step rounds once more in it.
    wide = jnp.promote_types(dtype, jnp.float32)
    rtol = 1e3 * float(jnp.finfo(wide).eps)
    for site in sites:
      pair, delta = (
        [
          np.asarray(x, np.float64)
          for x in lora_opt.pairs.extract_pairs(tree, [site])[site.name]
        ]
        for tree in (after, step)
      )
      a, b = pair
      product = a @ b.swapaxes(1, 2)
      old = (a - delta[0]) @ (b - delta[1]).swapaxes(1, 2)
      s = np.linalg.svd(product, compute_uv=False)[:, : site.rank]
      aa, bb = (x.swapaxes(1, 2) @ x for x in pair)

      def norm(x):
        return np.linalg.norm(x, axis=(1, 2))

      expected = {
        'imbalance': norm(aa - bb) / (norm(aa) + norm(bb)),
        'condition': s[:, 0] / s[:, -1],
        'dead_directions': np.zeros(site.batch),
        'stable_rank': np.sum(s**2, 1) / s[:, 0] ** 2,
        'relative_step': norm(product - old) / norm(product),
      }
      for name, value in expected.items():
        got = getattr(ours[site.name], name)
        assert got.shape == site.batch_shape
        np.testing.assert_allclose(got.reshape(-1), value, rtol, err_msg=name)


def test_dead_directions():
  tree = problems.mixed_tree(zero_b=False)
  head = tree['head']
  head['lora_a'] = head['lora_a'].at[:, 1].set(head['lora_a'][:, 0])
  tree['tail']['lora_b'] *= 0
  down = tree['layers']['down']
  down['lora_b'] = down['lora_b'].at[1, 2:].set(0)
  found = diagnostics.diagnose(tree)
  dead = {k: v.dead_directions.tolist() for k, v in found.items()}
  assert dead == {
    'head.lora': 1,
    'tail.lora': 2,
    'layers.down.lora': [0, 2, 0],
    'layers.q.lora': [0, 0, 0],
  }
  assert problems.is_finite(found)
  assert diagnostics.summarize(found)['dead_directions_total'] == 5
  assert found['tail.lora'].imbalance == 1


def test_the_first_step_from_zero_is_all_of_it():
  tree = problems.mixed_tree()
  trainer = problems.trainer('lora_rite')
  after, _, _, _ = trainer.train(tree, 1)
  step = jax.tree.map(jnp.subtract, after, tree)
  for pair in diagnostics.diagnose(after, step).values():
    np.testing.assert_allclose(pair.relative_step, 1, rtol=1e-4)
