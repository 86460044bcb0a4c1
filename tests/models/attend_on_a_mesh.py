"""Kernels on eight simulated devices against the plain way on one."""

import dataclasses

import jax
import numpy as np

from lora_opt.devices.partitioning import Partitioner, put
from lora_opt.models import LoraConfig, random_model
from tests.models.batches import random_adapter, row_batch


def compare():
  """Raises AssertionError unless losses and gradients are the same."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_disable_most_optimizations', True)
  for kv_heads in (2, 1):
    settings = {'num_kv_heads': kv_heads, 'window': 20}
    _compare(
      random_model(
        LoraConfig('.*', rank=2), windowed_layers=(True, False), **settings
      )
    )


def _compare(model):
  lora = random_adapter(model)
  batch = row_batch(*[list(range(n, n + 40)) for n in (3, 50, 100, 150)])
  blockwise = dataclasses.replace(model, attention='blockwise')

  def loss(model):
    return jax.value_and_grad(
      lambda lora, base: model.token_losses(base, lora, batch).sum()
    )

  expected = jax.jit(loss(model))(lora, model.base)
  placement = Partitioner(data=2, fsdp=2, tensor=2).place(model)
  actual = placement.jit(loss(blockwise))(
    put(lora, placement.trainable), put(model.base, placement.base)
  )
  for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    # Sums over 160 positions, in another order.
    atol = 160 * 2**-23 * abs(e).max()
    np.testing.assert_allclose(a, e, rtol=0, atol=atol)
