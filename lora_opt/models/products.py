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
  y = x.reshape(-1, x.shape[-1]) @ weight
  return y.reshape(*x.shape[:-1], -1)


def _forward(x, weight):
  # A weight that is frozen has no gradient, and needs no x kept for it.
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
  return product(gradient, weight.T), to_weight


product.defvjp(_forward, _backward, symbolic_zeros=True)


def _outer(x, gradient):
  """The sum over positions of x's row times the gradient's."""
  axes = tuple(range(x.ndim - 1))
  return lax.dot_general(x, gradient, ((axes, axes), ((), ())))


def _outer_in_rows(x, gradient):
  return _outer(
    x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  )
