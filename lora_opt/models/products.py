"""The product of activations and a weight, in a shape that suits the platform.

XLA's compiler for CPUs runs a product of rank 3 far slower than the same
product of rank 2, so the leading axes are merged there. Products of bfloat16
have two more requirements on CPUs: the result is float32 and rounded
afterwards, and no transposition precedes the product. Otherwise they take twice
as long on processors with instructions for bfloat16 (AVX512_BF16,
experiments/training_step).

The compiler for TPUs fuses the operations after a product (the addition of an
adapter, the gate of an MLP) into the product only if there is no reshape
between them; with one, a step of Gemma 2B took a tenth more cycles
(experiments/compiled_steps).

The platform is only known when the program is lowered, since it may be compiled
for devices of another machine.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x @ weight.

  Args:
    x: (..., fan_in).
    weight: (fan_in, fan_out), of the same type.

  Returns:
    (..., fan_out).

  >>> product(jnp.ones((2, 3, 4)), jnp.ones((4, 5))).shape
  (2, 3, 5)
  """
  return lax.platform_dependent(x, weight, cpu=_in_rows, default=jnp.matmul)


def _in_rows(x, weight):
  return _product_of_rows(x, weight, 0)


def _forward(x, weight):
  # A frozen weight has no gradient, so x need not be kept for it.
  y = product(x.value, weight.value)
  return y, (x.value if weight.perturbed else None, weight.value)


def _backward(kept, gradient):
  x, weight = kept
  if isinstance(gradient, SymbolicZero):
    gradient = jnp.zeros(gradient.shape, gradient.dtype)
  to_weight = (
    x
    if x is None
    else lax.platform_dependent(x, gradient, cpu=_outer_in_rows, default=_outer)
  )
  return product_by_transposed(gradient, weight), to_weight


product.defvjp(_forward, _backward, symbolic_zeros=True)

# Up to this many rows, products on CPUs are faster with the weight on the left.
FEW_ROWS = 64


def product_by_turned(x: jax.Array, turned: jax.Array) -> jax.Array:
  """x @ turned.T, for x (..., fan_in) and a weight (fan_out, fan_in).

  With few rows, as in decoding, this takes a third to two thirds of the time of
  `product` on a CPU: there a product first rearranges both of its operands,
  which is faster if the large matrix is on the left and the sum is along its
  rows (experiments/decoding).

  Returns:
    (..., fan_out), at least in float32.

  >>> product_by_turned(jnp.ones((2, 3, 4)), jnp.ones((5, 4))).shape
  (2, 3, 5)
  """
  rows = x.reshape(-1, x.shape[-1])

  def from_the_left(rows, turned):
    # Without the barriers both transpositions are fused into the product.
    columns = lax.optimization_barrier(rows.T)
    return lax.optimization_barrier(_sum_over(turned, columns, 1, 0)).T

  def plain(rows, turned):
    return _sum_over(rows, turned, 1, 1)

  cpu = from_the_left if 1 < len(rows) <= FEW_ROWS else plain
  y = lax.platform_dependent(rows, turned, cpu=cpu, default=plain)
  return y.reshape(*x.shape[:-1], -1)


def product_by_transposed(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x @ weight.T, for x (..., fan_out) and a weight (fan_in, fan_out).

  >>> product_by_transposed(jnp.ones((2, 3, 5)), jnp.ones((4, 5))).shape
  (2, 3, 4)
  """
  return lax.platform_dependent(
    x,
    weight,
    cpu=lambda x, weight: _product_of_rows(x, weight, 1),
    default=lambda x, weight: jnp.matmul(x, weight.T),
  )


def _product_of_rows(x, weight, axis):
  """Contracts the last axis of x with an axis of the weight."""
  rows = x.reshape(-1, x.shape[-1])
  y = _sum_over(rows, weight, 1, axis)
  return y.astype(x.dtype).reshape(*x.shape[:-1], -1)


def _outer(x, gradient):
  """The sum over positions of outer products of the rows of x and gradient."""
  axes = tuple(range(x.ndim - 1))
  return lax.dot_general(x, gradient, ((axes, axes), ((), ())))


def _outer_in_rows(x, gradient):
  x, gradient = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
  return _sum_over(x, gradient, 0, 0).astype(x.dtype)


def _sum_over(x, y, x_axis, y_axis):
  """Contracts an axis of each of two matrices, at least in float32."""
  dimensions = (((x_axis,), (y_axis,)), ((), ()))
  wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
  return lax.dot_general(x, y, dimensions, preferred_element_type=wide)
