"""Soft caps (Gemma 2), which bound numbers smoothly."""

import jax
import jax.numpy as jnp


def capped(x: jax.Array, softcap: float | None) -> jax.Array:
  """softcap * tanh(x / softcap); x itself for None.

  >>> [round(float(y), 2) for y in capped(jnp.array([0.1, 3.0, 90.0]), 2.0)]
  [0.1, 1.81, 2.0]
  """
  return x if softcap is None else softcap * jnp.tanh(x / softcap)


def slope(y: jax.Array, softcap: float | None) -> jax.Array | float:
  """The derivative of `capped`, computed from its result y."""
  return 1.0 if softcap is None else 1 - (y / softcap) ** 2
