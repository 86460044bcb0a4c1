"""The two ends of a language model: embedding and head.

Both are (vocab, embed) tables, and an adapter of either has the layout of the
map from embed to vocab: lora_a (embed, rank) starts at random, lora_b (rank,
vocab) at zero. That is where PEFT's embedding starts too, its A being lora_b.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.lora import LoraConfig, adapter_code, lora_factors

AXES = ('embed', 'vocab')


class Head(NamedTuple):
  """Logits are hidden @ table.T + codes @ up."""

  table: jax.Array  # (vocab, embed)
  codes: jax.Array | None  # (batch, length, rank), None without an adapter
  up: jax.Array | None  # (rank, vocab)


class EmbeddingTable(nn.Module):
  """The row of each token, from a table of one row for each.

  Attributes:
    vocab_size: Rows.
    features: Columns.
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the rows returned.
    param_dtype: Type the table is stored in.
  """

  vocab_size: int
  features: int
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the rows (batch, length, embed), and the table for the head."""
    table = _table(self, (self.vocab_size, self.features))
    x = table[tokens].astype(self.dtype)
    if _adapted(self):
      a, b = lora_factors(self, (self.features, self.vocab_size), AXES)
      codes = jnp.take(b, tokens.reshape(-1), axis=1).T
      x += ((codes * self.lora.scale) @ a.T).reshape(x.shape)
    return x, table


class OutputHead(nn.Module):
  """The map to logits, not yet applied: see `token_cross_entropy`.

  Attributes:
    vocab_size: Rows of the table.
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the computation.
    param_dtype: Type the table is stored in.
  """

  vocab_size: int
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, hidden: jax.Array, tied: jax.Array | None) -> Head:
    """Makes the head for hidden (batch, length, embed).

    Args:
      hidden: Last hidden states.
      tied: The embedding (vocab, embed), or None for a table of its own.
    """
    features = hidden.shape[-1]
    table = tied
    if table is None:
      table = _table(self, (self.vocab_size, features))
    codes = up = None
    if _adapted(self):
      a, up = lora_factors(self, (features, self.vocab_size), AXES)
      rows = hidden.reshape(-1, features)
      codes = adapter_code(self, rows, a).reshape(*hidden.shape[:-1], -1)
    return Head(table.astype(self.dtype), codes, up)


def _table(module: nn.Module, shape: tuple[int, int]) -> jax.Array:
  init = nn.with_logical_partitioning(nn.initializers.normal(0.02), AXES[::-1])
  return module.param('table', init, shape, module.param_dtype)


def _adapted(module: nn.Module) -> bool:
  return module.lora is not None and module.lora.adapts('/'.join(module.path))
