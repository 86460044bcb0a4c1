"""axlearn's adapters of attention and linear layers.

Its release needs a jax too old for `lora_opt` as a whole; see `old_jax`.
"""

# ruff: noqa: E402
from tests.integrations.layouts import old_jax

old_jax.enter()

import functools
import sys

import jax
import jax.numpy as jnp
from axlearn.common import lora
from axlearn.common.attention import FusedQKVLinear
from axlearn.common.base_layer import BaseLayer
from axlearn.common.config import config_class
from axlearn.common.module import Module
from axlearn.common.module import functional as F

from tests.integrations.layouts import check

WIDTH, HEADS, RANK = 12, 3, 2
X = jnp.linspace(-1, 1, 2 * 4 * WIDTH).reshape(2, 4, WIDTH)


class Layer(BaseLayer):
  """What LoRA stands for in a layer of a transformer, without the softmax."""

  @config_class
  class Config(BaseLayer.Config):
    enabled: tuple[str, ...] = ('query', 'key', 'value')

  def __init__(self, cfg, *, parent: Module):
    super().__init__(cfg, parent=parent)
    sizes = {'num_heads': HEADS, 'per_head_dim': WIDTH // HEADS}
    low_rank = {'rank': RANK, 'alpha': 4.0}
    qkv = lora.LoraFusedQKVLinear.default_config().set(
      query_dim=WIDTH, key_dim=WIDTH, value_dim=WIDTH, **sizes
    )
    qkv.layer = FusedQKVLinear.default_config()
    qkv.adapter.set(
      enable_lora={n: n in cfg.enabled for n in ('query', 'key', 'value')},
      **low_rank,
    )
    out = lora.LoraMultiheadOutputLinear.default_config()
    out.set(model_dim=WIDTH, **sizes).adapter.set(**low_rank)
    linear = lora.LoraLinear.default_config()
    linear.set(input_dim=WIDTH, output_dim=WIDTH).adapter.set(**low_rank)
    self._add_child('qkv_proj', qkv)
    self._add_child('o_proj', out)
    self._add_child('linear', linear)

  def forward(self, x):
    q, k, v = self.qkv_proj(x)
    return x + self.linear(jnp.tanh(self.o_proj(jnp.tanh(q * k + v))))


def make(layouts, enabled=('query', 'key', 'value')):
  cfg = Layer.default_config().set(enabled=enabled)
  model = cfg.set(name='model').instantiate(parent=None)
  params = model.initialize_parameters_recursively(jax.random.PRNGKey(0))

  @jax.jit
  def forward(tree):
    return F(
      model,
      prng_key=jax.random.PRNGKey(1),
      state=_like(params, tree),
      inputs=(X,),
      is_training=False,
    )[0]

  return check.Case(layouts, 3, _plain(params), forward)


def _plain(tree):
  """Its own dicts as dicts: in them jax sees no names."""
  if not isinstance(tree, dict):
    return tree
  return {name: _plain(x) for name, x in tree.items() if x is not None}


def _like(params, tree):
  if not isinstance(params, dict):
    return tree
  return type(params)(
    {name: _like(x, tree.get(name)) for name, x in params.items()}
  )


ONE = ('AXLEARN', 'AXLEARN_OUTPUT', 'AXLEARN_QKV')
CASES = {
  'axlearn, attention': functools.partial(make, ONE),
  'axlearn, query and value': functools.partial(make, ONE, ('query', 'value')),
}

if __name__ == '__main__':
  check.main(['axlearn_layers', *sys.argv[1:]])
