"""Kernels in few bits: the rounding, the packing, the size."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lora_opt.models.quantized import KINDS, dequantize, quantize_kernel

# Quantiles of the normal distribution, appendix E of arXiv 2305.14314.
NF4 = [
  *(-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343),
  *(-0.09105004, 0, 0.0795803, 0.1609302, 0.2461123, 0.33791524),
  *(0.44070983, 0.562617, 0.72295684, 1),
]
# All values a code may take, and the code that the largest magnitude is.
GRIDS = {
  'int8': (np.arange(-128, 128), 127.5),
  'int4': (np.arange(-8, 8), 7.5),
  'nf4': (np.array(NF4), 1.0),
}


def reference(kernel, kind, block):
  """Nearest value of the grid, times a scale per block and output."""
  grid, largest = GRIDS[kind]
  blocks = kernel.reshape(-1, block, kernel.shape[1])
  scale = abs(blocks).max(1, keepdims=True) / largest
  nearest = abs((blocks / scale)[..., None] - grid).argmin(-1)
  stored = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
  return (grid[nearest] * stored).reshape(kernel.shape)


def random_kernel(fan_in, fan_out):
  random = np.random.default_rng(0)
  return random.standard_normal((fan_in, fan_out)).astype(np.float32)


@pytest.mark.parametrize('kind', KINDS)
def test_rounds_to_the_nearest_code(kind):
  kernel, block = random_kernel(32, 10), 8
  q = quantize_kernel(jnp.asarray(kernel), kind, block)
  assert (q.shape, q.size) == (kernel.shape, kernel.size)
  actual = dequantize(q, jnp.float32)
  expected = reference(kernel, kind, block)
  # The largest of a block is half a step beyond the last integer: a tie.
  largest = abs(kernel.reshape(-1, block, 10)).max(1).repeat(block, 0)
  tie = abs(kernel) == largest if kind != 'nf4' else np.zeros((32, 10), bool)
  np.testing.assert_allclose(actual[~tie], expected[~tie], rtol=1e-6)
  step = {'int8': 1 / 127.5, 'int4': 1 / 7.5, 'nf4': 0}[kind]
  np.testing.assert_allclose(abs(actual)[tie], largest[tie], rtol=step)


@pytest.mark.parametrize('kind', KINDS)
def test_size(kind):
  q = quantize_kernel(jnp.ones((128, 6)), kind, 64)
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(q))
  assert held * 8 / q.size == 8 / KINDS[kind] + 16 / 64


@pytest.mark.parametrize('kind', KINDS)
def test_layers_of_a_stack(kind):
  kernels = [jnp.asarray(random_kernel(8, 4) + i) for i in range(3)]
  layers = [quantize_kernel(kernel, kind) for kernel in kernels]
  stack = jax.tree.map(lambda *x: jnp.stack(x), *layers)
  assert stack.shape == (3, 8, 4)
  np.testing.assert_array_equal(
    dequantize(stack[1], jnp.float32), dequantize(layers[1], jnp.float32)
  )


def test_computes_in_the_type_asked_for():
  q = quantize_kernel(jnp.ones((8, 4), jnp.bfloat16), 'nf4')
  assert dequantize(q, jnp.bfloat16).dtype == jnp.bfloat16
  assert dequantize(q, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(
  ('shape', 'settings', 'message'),
  [
    ((8, 4), {'kind': 'int3'}, "'int3' must be one of int8, int4, nf4"),
    ((96, 4), {'kind': 'int8'}, r'fan_in=96 must be a multiple of block=64'),
    ((7, 4), {'kind': 'nf4'}, 'fan_in=7 must be a multiple of .* and of 2'),
  ],
)
def test_what_does_not_fit(shape, settings, message):
  with pytest.raises(ValueError, match=message):
    quantize_kernel(jnp.ones(shape), **settings)
