"""Programs of doubled types have doubled arrays, whatever is in them."""

import jax
import jax.numpy as jnp
import pytest

from lora_opt.planning.widen import widen

ROWS, WIDTH = 64, 128


def compiled(function, *shapes, wide):
  # A new function each time: JAX keeps what it lowered by function and shapes.
  lowered = jax.jit(lambda *arguments: function(*arguments)).lower(
    *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)
  )
  if wide:
    widen(lowered.compiler_ir('stablehlo'))
  return lowered.compile()


def everything(x, w, index):
  """Random bits, constants of both kinds, a branch, a loop, mixed products."""
  keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
  x = jnp.where(keep, x, jnp.asarray(-jnp.inf, x.dtype))
  table = jnp.array([1.0, 2.0, jnp.inf, 4.0] * (WIDTH // 4))
  y = jnp.dot(x, w, preferred_element_type=jnp.float32) + table[None]
  picked = jax.lax.cond(jnp.any(index > 0), jnp.sin, jnp.cos, y)
  return jax.lax.fori_loop(
    0, 3, lambda i, z: z + jnp.take(z, index, axis=0), picked
  )


ARGUMENTS = [
  ((ROWS, WIDTH), 'bfloat16'),
  ((WIDTH, WIDTH), 'bfloat16'),
  ((ROWS,), 'int32'),
]


def test_arguments_and_results_are_twice_as_large():
  stats = compiled(everything, *ARGUMENTS, wide=True).memory_analysis()
  arguments = 2 * (ROWS + WIDTH) * WIDTH + 4 * ROWS
  assert stats.argument_size_in_bytes == 2 * arguments
  assert stats.output_size_in_bytes == 2 * 4 * ROWS * WIDTH


def layers(x, kernels):
  def layer(x, kernel):
    return jnp.tanh(x @ kernel), None

  return jnp.sum(jax.lax.scan(layer, x, kernels)[0])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_temporaries_are_those_of_native_types(dtype):
  """A chip with bfloat16 needs half of what float32 needs; a CPU does not."""
  shapes = ((ROWS, WIDTH), (8, WIDTH, WIDTH))
  gradient = jax.grad(layers, argnums=(0, 1))

  def temporaries(dtype, wide):
    arguments = ((shape, dtype) for shape in shapes)
    run = compiled(gradient, *arguments, wide=wide)
    return run.memory_analysis().temp_size_in_bytes

  native = temporaries('float32', wide=False)
  size = jnp.dtype(dtype).itemsize / 4
  assert temporaries(dtype, wide=True) / 2 == pytest.approx(
    native * size, rel=0.1
  )
  if dtype == 'bfloat16':
    assert temporaries(dtype, wide=False) > 1.2 * native * size


def test_no_operand_of_a_mixed_product_is_converted():
  def product(x, w):
    return jnp.dot(x, w, preferred_element_type=jnp.float32).sum()

  rows, vocabulary = ((4, WIDTH), 'bfloat16'), ((WIDTH, 9999), 'bfloat16')
  stats = compiled(product, rows, vocabulary, wide=True).memory_analysis()
  assert stats.temp_size_in_bytes / 2 < WIDTH * 9999 * 2 / 4
