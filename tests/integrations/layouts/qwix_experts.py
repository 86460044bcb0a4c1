"""qwix on stacked experts: einsums, products with a batch axis, scanned."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from tests.integrations.layouts.check import Case
from tests.integrations.layouts.qwix_models import linen, provider

EXPERTS, WIDTH, HIDDEN = 3, 8, 5
X = jnp.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)


class Experts(nnx.Module):
  """One einsum spreads tokens over experts, one goes on expert by expert."""

  def __init__(self, rngs):
    init = nnx.initializers.lecun_normal()
    self.up = nnx.Param(init(rngs.params(), (EXPERTS, WIDTH, HIDDEN)))
    self.down = nnx.Param(init(rngs.params(), (EXPERTS, HIDDEN, WIDTH)))

  def __call__(self, x):
    hidden = jnp.tanh(jnp.einsum('bd,edf->bef', x, self.up))
    return jnp.einsum('bef,efd->bed', hidden, self.down)


def on_nnx():
  model = qwix.apply_lora_to_model(
    Experts(nnx.Rngs(0)), provider(), X, rngs=nnx.Rngs(1)
  )
  graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
  forward = jax.jit(lambda lora: nnx.merge(graph, lora, rest)(X))
  return Case('QWIX', 2, lora, forward)


class Batched(nn.Module):
  """Every expert has its own matrix and its own part of the input."""

  @nn.compact
  def __call__(self, x, _=None):
    x = jnp.tanh(nn.DenseGeneral(HIDDEN, batch_dims=0)(x))
    return jnp.tanh(nn.DenseGeneral(WIDTH, batch_dims=0)(x)), None


class OfExperts(nn.Module):
  """Layers of experts, scanned on an axis, or one alone."""

  axis: int | None

  @nn.compact
  def __call__(self, x):
    x = jnp.stack([x, jnp.sin(3 * x), jnp.cos(2 * x)])
    if self.axis is None:
      return Batched()(x)[0]
    layers = nn.scan(
      Batched,
      variable_axes={'params': self.axis},
      split_rngs={'params': True},
      length=4,
    )()
    return layers(x, None)[0]


def of_experts(axis, layout):
  return linen(functools.partial(OfExperts, axis), layout, 2)


# (Einsums on linen's parameters inside nn.scan qwix does not adapt: it wants to
# set an attribute of a frozen module. Nor does it go into nnx.vmap.)
CASES = {
  'qwix nnx, experts by einsum': on_nnx,
  'qwix linen, experts as a batch': of_experts(None, 'QWIX_SCANNED_0'),
  'qwix linen, experts as a batch, scanned on axis 0': of_experts(
    0, 'QWIX_BATCHED'
  ),
  'qwix linen, experts as a batch, scanned on axis 1': of_experts(
    1, 'QWIX_BATCHED'
  ),
}
