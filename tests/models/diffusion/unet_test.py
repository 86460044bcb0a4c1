"""The UNet: sizes, odd images, and what is differentiated."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from lora_opt.models.diffusion.unet import UNet
from lora_opt.models.diffusion.unet_config import UNetConfig

SD2 = UNetConfig(
  heads=(5, 10, 20, 20), context_dims=(1024,) * 4, linear_projection=True
)


@pytest.mark.parametrize(
  ('config', 'count'), [(UNetConfig(), 859_520_964), (SD2, 865_910_724)]
)
def test_published_sizes(config, count):
  network = UNet(None, jnp.dtype('float32'), jnp.dtype('float32'), config)
  given = (jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 7, 768)))
  if config is SD2:
    given = (*given[:2], jnp.zeros((1, 7, 1024)))
  made = jax.eval_shape(
    lambda: nn.unbox(network.init(jax.random.key(0), *given))
  )
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(made['params'])]
  assert sum(sizes) == count
