"""A diffusion model split over eight simulated devices against one."""

import dataclasses

import jax
import numpy as np

from lora_opt.devices.partitioning import Partitioner, put
from lora_opt.models.diffusion.random_pipeline import random_pipeline
from lora_opt.models.lora import LoraConfig


def compare():
  """Raises AssertionError unless losses and gradients are the same."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_disable_most_optimizations', True)
  target = 'unet/.*(to_[qkv]|conv1|net.2)|text_encoder/.*/q_proj'
  model = random_pipeline(LoraConfig(target=target, rank=2))
  lora = jax.tree.map(
    lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
    model.init(jax.random.key(0)),
  )
  images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3))
  batch = {
    'images': images.astype(np.uint8),
    'tokens': model.encode_texts([f'picture {i}' for i in range(8)]),
    'weights': np.ones((8, 1), np.float32),
    'noise_seeds': np.arange(8, dtype=np.uint32),
  }

  def loss(model):
    def mean(lora, base):
      return model.token_losses(base, lora, batch).mean()

    return jax.value_and_grad(mean)

  expected = jax.jit(loss(model))(lora, model.base)
  # Kernels and what stands for them must be told how arrays are split.
  blockwise = dataclasses.replace(model, attention='blockwise')
  placement = Partitioner(data=2, fsdp=2, tensor=2).place(blockwise)
  names = {name for name, _ in placement.rules}
  assert {'heads', 'mlp', 'embed'} <= names, names
  actual = placement.jit(loss(blockwise))(
    put(lora, placement.trainable), put(model.base, placement.base)
  )
  for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=1e-4 * abs(e).max())
