"""Activations by their names in diffusers and transformers."""

import functools

import jax
import jax.numpy as jnp


def quick_gelu(x: jax.Array) -> jax.Array:
  """x * sigmoid(1.702 x), the approximation of GELU that CLIP uses."""
  return x * jax.nn.sigmoid(1.702 * x)


def mish(x: jax.Array) -> jax.Array:
  """x * tanh(softplus(x))."""
  return x * jnp.tanh(jax.nn.softplus(x))


ACTIVATIONS = {
  'silu': jax.nn.silu,
  'swish': jax.nn.silu,
  'mish': mish,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'relu': jax.nn.relu,
  'quick_gelu': quick_gelu,
}
