"""qwix on nnx and linen: einsums, scanned layers, a quantised base."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from tests.integrations.layouts.check import Case

X = jnp.linspace(-1, 1, 2 * 8).reshape(2, 8)


def provider(**options):
  return qwix.LoraProvider(module_path='.*', rank=2, alpha=4, **options)


class NnxModel(nnx.Module):
  def __init__(self, rngs):
    self.dense = nnx.Linear(8, 16, rngs=rngs)
    self.heads = nnx.Einsum('bd,dnh->bnh', (16, 4, 3), rngs=rngs)
    self.out = nnx.Einsum('bnh,nhd->bd', (4, 3, 5), rngs=rngs)

  def __call__(self, x):
    return self.out(jnp.tanh(self.heads(jnp.tanh(self.dense(x)))))


def on_nnx(**options):
  model = qwix.apply_lora_to_model(
    NnxModel(nnx.Rngs(0)), provider(**options), X, rngs=nnx.Rngs(1)
  )
  graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
  forward = jax.jit(lambda lora: nnx.merge(graph, lora, rest)(X))
  return Case('QWIX', 3, lora, forward)


class LinenModel(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = jnp.tanh(nn.Dense(16)(x))
    x = jnp.tanh(nn.DenseGeneral((4, 3))(x))
    return nn.DenseGeneral(5, axis=(-2, -1))(x)


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return jnp.tanh(nn.Dense(8)(x)), None


class Scanned(nn.Module):
  axis: int

  @nn.compact
  def __call__(self, x):
    layers = nn.scan(
      Layer,
      variable_axes={'params': self.axis},
      split_rngs={'params': True},
      length=3,
    )()
    return layers(x, None)[0]


def on_linen(make_model, layout, sites, **options):
  model = qwix.apply_lora_to_model(make_model(), provider(**options))
  params = model.init(jax.random.key(0), X)
  return Case(layout, sites, params, jax.jit(lambda p: model.apply(p, X)))


def linen(*case, **options):
  return functools.partial(on_linen, *case, **options)


CASES = {
  'qwix nnx, einsum': on_nnx,
  'qwix nnx, int8 base': functools.partial(on_nnx, weight_qtype='int8'),
  'qwix nnx, nf4 base': functools.partial(on_nnx, weight_qtype='nf4'),
  'qwix linen, einsum': linen(LinenModel, 'QWIX', 3),
  'qwix linen, nf4 base': linen(LinenModel, 'QWIX', 3, weight_qtype='nf4'),
  'qwix linen, scanned on axis 0': linen(
    functools.partial(Scanned, 0), 'QWIX_SCANNED_0', 1
  ),
  'qwix linen, scanned on axis 1': linen(
    functools.partial(Scanned, 1), 'QWIX_SCANNED_1', 1
  ),
}
