"""The product of activations and a weight, in the shape that suits a platform.

XLA's compiler for CPUs runs a product of rank 3 far slower than the same of
rank 2: there the leading axes are made one. That of TPUs joins what comes after
a product (the addition of an adapter, the gate of an MLP) to the product itself
only where no such change of shape stands between them; with it, a step of
Gemma 2B took a tenth more cycles (experiments/compiled_steps).

Which is meant is known when the program is lowered, not before: it may be
compiled for devices that are not here.
"""

import jax
import jax.numpy as jnp


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
  return jax.lax.platform_dependent(x, weight, cpu=_in_rows, default=jnp.matmul)


def _in_rows(x, weight):
  y = x.reshape(-1, x.shape[-1]) @ weight
  return y.reshape(*x.shape[:-1], -1)


def _forward(x, weight):
  return product(x, weight), (x, weight)


def _backward(kept, gradient):
  x, weight = kept
  return product(gradient, weight.T), jax.lax.platform_dependent(
    x, gradient, cpu=_outer_in_rows, default=_outer
  )


product.defvjp(_forward, _backward)


def _outer(x, gradient):
  """The sum over positions of x's row times the gradient's."""
  axes = tuple(range(x.ndim - 1))
  return jax.lax.dot_general(x, gradient, ((axes, axes), ((), ())))


def _outer_in_rows(x, gradient):
  return _outer(
    x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  )
