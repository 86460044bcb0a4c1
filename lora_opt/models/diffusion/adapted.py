"""The settings that every module of these networks shares."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.lora import LoraConfig


class Adapted(nn.Module):
  """A module whose parts may have adapters.

  Modules are named as in diffusers: a path is diffusers' name with '/' for '.',
  except that an index stays attached to its list
  ('down_blocks.0/attentions.1/transformer_blocks.0/attn1/to_q').

  Attributes:
    lora: Adapter settings, or None for the base without adapter.
    dtype: Type of the computation.
    param_dtype: Type that the base is stored in.
  """

  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @property
  def settings(self) -> tuple[LoraConfig | None, jnp.dtype, jnp.dtype]:
    """The three attributes, to be passed to the parts of this module."""
    return self.lora, self.dtype, self.param_dtype


def added(x: jax.Array, vector: jax.Array) -> jax.Array:
  """Adds a vector (rows, width) to x (rows, ..., width) at every position."""
  between = [1] * (x.ndim - 2)
  return x + vector.reshape(vector.shape[0], *between, vector.shape[-1])
