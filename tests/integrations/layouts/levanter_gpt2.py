"""levanter's GPT-2, whose layers are stacked, and one linear layer."""

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
from levanter import lora
from levanter.models.gpt2 import Gpt2Config, Gpt2LMHeadModel

from tests.integrations.layouts.check import Case


def case(model, layout, sites, call):
  model = lora.loraize(model, lora.LoraConfig(r=4), jax.random.key(1))
  chosen = eqx.filter(model, eqx.is_array)
  is_lora = lora.lora_trainable_params_filter(model)
  tree, base = eqx.partition(chosen, is_lora)
  rest = eqx.filter(model, eqx.is_array, inverse=True)

  @jax.jit
  def forward(tree, base):
    return call(eqx.combine(tree, base, rest))

  return Case(layout, sites, tree, lambda tree: forward(tree, base))


def gpt2():
  config = Gpt2Config(hidden_dim=16, num_layers=3, num_heads=2)
  model = Gpt2LMHeadModel.init(
    hax.Axis('vocab', 64), config, key=jax.random.key(0)
  )
  position = hax.Axis('position', 8)

  def call(model):
    tokens = hax.named(jnp.arange(8), position)
    return model(tokens, key=None).array

  return case(model, 'LEVANTER_STACKED', 4, call)


def linear():
  inputs, heads, dim = hax.make_axes(inputs=8, heads=4, dim=3)
  model = hax.nn.Linear.init(inputs, (heads, dim), key=jax.random.key(0))
  x = hax.named(jnp.linspace(-1, 1, 8), inputs)

  class Model(eqx.Module):
    layer: hax.nn.Linear

  return case(Model(model), 'LEVANTER', 1, lambda model: model.layer(x).array)


CASES = {'levanter, GPT-2': gpt2, 'levanter, Linear': linear}
