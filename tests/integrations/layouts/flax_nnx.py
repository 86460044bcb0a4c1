"""flax.nnx.LoRA, LoRALinear, and layers made by nnx.vmap."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.integrations.layouts.check import Case


def forward_of(model):
  graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)

  @jax.jit
  def forward(lora, rest):
    return nnx.merge(graph, lora, rest)(jnp.ones((2, 6)))

  return lora, lambda lora: forward(lora, rest)


def lora_linear():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.up = nnx.LoRALinear(6, 5, lora_rank=2, rngs=rngs)
      self.down = nnx.LoRA(5, 2, 3, rngs=rngs)

    def __call__(self, x):
      return self.down(jnp.tanh(self.up(x)))

  lora, forward = forward_of(Model(nnx.Rngs(0)))
  return Case('FLAX', 2, lora, forward)


def stacked():
  class Model(nnx.Module):
    def __init__(self, rngs):
      @nnx.split_rngs(splits=3)
      @nnx.vmap(in_axes=0, out_axes=0)
      def make(rngs):
        return nnx.LoRALinear(6, 6, lora_rank=2, rngs=rngs)

      self.layers = make(rngs)

    def __call__(self, x):
      @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
      def run(x, layer):
        return jnp.tanh(layer(x))

      return run(x, self.layers)

  lora, forward = forward_of(Model(nnx.Rngs(0)))
  return Case('FLAX', 1, lora, forward)


CASES = {'nnx.LoRALinear, nnx.LoRA': lora_linear, 'nnx, scanned': stacked}
