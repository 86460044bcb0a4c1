"""PiSSA and OLoRA against the definitions of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.lora import LoraConfig
from lora_opt.models.random_model import random_model
from lora_opt.models.start import olora, pissa

SHAPES = [(12, 30), (30, 12), (12, 12)]


def random_kernel(shape):
  return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('scale', [1.0, 8.0])
def test_pissa_takes_the_leading_singular_directions(shape, scale):
  kernel = random_kernel(shape)
  a, b = pissa(kernel, 4, scale)
  u, s, v = np.linalg.svd(kernel)
  leading = (u[:, :4] * s[:4]) @ v[:4]
  np.testing.assert_allclose(scale * a @ b, leading, atol=1e-12)
  np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-12)


@pytest.mark.parametrize('shape', SHAPES)
def test_olora_takes_the_first_part_of_a_qr(shape):
  kernel = random_kernel(shape)
  a, b = olora(kernel, 4, 2.0)
  q, r = np.linalg.qr(kernel.T)
  np.testing.assert_allclose(a @ b, (q[:, :4] @ r[:4]).T, atol=1e-12)
  np.testing.assert_allclose(b @ b.T, np.eye(4), atol=1e-12)


def test_kernel_of_lower_rank_than_the_adapter():
  left, right = random_kernel((12, 2)), random_kernel((30, 2)).T
  for start in (pissa, olora):
    a, b = start(left @ right, 4, 2.0)
    scale = 2.0 if start is pissa else 1.0
    np.testing.assert_allclose(scale * a @ b, left @ right, atol=1e-9)
  a, b = pissa(np.zeros((5, 6)), 2, 1.0)
  assert not a.any()
  assert not b.any()


def test_training_may_overwrite_what_init_returns():
  model = random_model(LoraConfig('.*/q', rank=2, start=pissa), num_layers=1)
  lora = model.init(jax.random.key(0))
  step = jax.jit(
    lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0
  )
  step(lora)
  again = model.init(jax.random.key(1))
  for ours, theirs in zip(
    *map(jax.tree.leaves, (again, model.start)), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
