"""The product that is shaped for its platform, against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lora_opt.models import products
from lora_opt.planning.operations import product_flops


def arrays():
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 3, 8))
  weight = jax.random.normal(keys[1], (8, 5))
  return x, weight, jax.random.normal(keys[2], (2, 3, 5))


@pytest.mark.parametrize('platform', ['cpu', 'default'])
def test_both_shapes_and_their_gradients_are_the_plain_product(
  platform, monkeypatch
):
  x, weight, cotangent = arrays()
  monkeypatch.setattr(
    lax, 'platform_dependent', lambda *given, **by: by[platform](*given)
  )
  y, backward = jax.vjp(products.product, x, weight)
  expected, plain_backward = jax.vjp(jnp.matmul, x, weight)
  # Sums of at most eight terms of size one, in another order.
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  for ours, theirs in zip(
    backward(cotangent), plain_backward(cotangent), strict=True
  ):
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('platform', 'shape'), [('cpu', '6x8xf32'), ('tpu', '2x3x8xf32')]
)
def test_the_platform_is_that_of_the_lowering(platform, shape):
  x, weight, _ = arrays()
  traced = jax.jit(products.product).trace(x, weight)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  (line,) = (line for line in text.splitlines() if 'dot_general' in line)
  assert f'tensor<{shape}>' in line


def test_nothing_is_computed_for_a_frozen_weight():
  x, *_ = arrays()

  def gradient(x, weight):
    weight = lax.stop_gradient(weight)
    body = jax.checkpoint(lambda x, _: (products.product(x, weight), None))
    return jax.grad(lambda x: lax.scan(body, x, None, length=2)[0].sum())(x)

  square = jnp.ones((8, 8))
  # Forward, once more in the backward pass, and the gradient of x: each twice.
  flops = product_flops(jax.make_jaxpr(gradient)(x, square))
  assert flops <= 3 * 2 * (2 * 6 * 8 * 8)


@pytest.mark.parametrize('against', ['product', 'product_by_transposed'])
def test_on_cpus_bfloat16_is_added_in_float32_and_rounded_once(against):
  """Which also is what its fast instructions give."""
  function = getattr(products, against)
  x, weight, _ = (a.astype(jnp.bfloat16) for a in arrays())
  if against == 'product_by_transposed':
    weight = weight.T
  traced = jax.jit(function).trace(x, weight)
  text = traced.lower(lowering_platforms=('cpu',)).as_text()
  (line,) = (line for line in text.splitlines() if 'dot_general' in line)
  assert (
    line.endswith('-> tensor<6x5xf32>') and 'stablehlo.transpose' not in text
  )
  wide, other = (np.asarray(a, np.float64) for a in (x, weight))
  exact = wide @ (other if against == 'product' else other.T)
  found = np.asarray(jax.jit(function)(x, weight), np.float64)
  # Half a unit of the last of its 8 bits.
  np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('platform', ['cpu', 'default'])
@pytest.mark.parametrize('rows', [1, 6, products.FEW_ROWS + 1])
def test_a_turned_weight_gives_the_same_product(
  rows, platform, dtype, monkeypatch
):
  monkeypatch.setattr(
    lax, 'platform_dependent', lambda *given, **by: by[platform](*given)
  )
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (rows, 1, 8)).astype(dtype)
  turned = jax.random.normal(keys[1], (5, 8)).astype(dtype)
  y = products.product_by_turned(x, turned)
  assert y.dtype == jnp.float32
  wide = [np.asarray(z, np.float64) for z in (x, turned)]
  # Sums of at most eight terms of size one; products of bfloat16 are exact.
  np.testing.assert_allclose(y, wide[0] @ wide[1].T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('rows', 'shape'),
  [(6, '5x8xf32'), (products.FEW_ROWS + 1, f'{products.FEW_ROWS + 1}x8xf32')],
)
def test_few_rows_are_on_the_right_of_a_product_on_cpus(rows, shape):
  traced = jax.jit(products.product_by_turned).trace(
    jnp.ones((rows, 8)), jnp.ones((5, 8))
  )
  text = traced.lower(lowering_platforms=('cpu',)).as_text()
  (line,) = (line for line in text.splitlines() if 'dot_general' in line)
  assert f': (tensor<{shape}>' in line
