"""The two ends of a language model: embedding and head.

Both are (vocab, embed) tables. An adapter of either has the layout of the map
from embed to vocab: lora_a (embed, rank) is random initially, lora_b (rank,
vocab) zero. PEFT initialises the adapter of an embedding the same way; its A is
our lora_b.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.axes import gathered
from lora_opt.models.lora import LoraConfig, adapter_code, lora_factors
from lora_opt.models.loss import adapted_cross_entropy, token_cross_entropy

AXES = ('embed', 'vocab')


class Head(NamedTuple):
  """Logits are hidden @ table.T + codes @ up, capped softly."""

  table: jax.Array  # (vocab, embed)
  codes: jax.Array | None  # (batch, length, rank), None without an adapter
  up: jax.Array | None  # (rank, vocab)
  softcap: float | None = None  # None for no cap


def token_losses(
  hidden: jax.Array,
  head: Head,
  batch: Mapping[str, jax.Array],
  chunk_rows: int | None,
) -> jax.Array:
  """Cross-entropy of `batch['targets']` at each position that counts.

  Args:
    hidden: (batch, length, embed).
    head: From `OutputHead`.
    batch: (batch, length) arrays targets and optionally weights.
    chunk_rows: Number of positions whose logits a device holds at once; None to
      choose it by platform.

  Returns:
    (batch, length) float32, 0 where the weight is 0.
  """
  targets = batch['targets']
  needed = batch.get('weights', jnp.ones(targets.shape, jnp.float32)) != 0
  labels = (targets, needed, chunk_rows, head.softcap)
  if head.codes is None:
    return token_cross_entropy(hidden, head.table, *labels)
  return adapted_cross_entropy(hidden, *head[:3], *labels)


class EmbeddingTable(nn.Module):
  """Looks up the row of each token in a table with one row per token.

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
  def __call__(
    self, tokens: jax.Array, tied: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Looks tokens up.

    Args:
      tokens: (batch, length) int32.
      tied: The table (vocab, embed) of another module to use; None to create
        one.

    Returns:
      The rows (batch, length, embed), and the table for the head.
    """
    table = tied
    if table is None:
      table = _table(self, (self.vocab_size, self.features))
    x = gathered(table, *AXES[::-1])[tokens].astype(self.dtype)
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
    softcap: Soft cap of the logits; None for no cap.
  """

  vocab_size: int
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  softcap: float | None = None

  @nn.compact
  def __call__(self, hidden: jax.Array, tied: jax.Array | None) -> Head:
    """Makes the head for hidden (batch, length, embed).

    Args:
      hidden: Last hidden states.
      tied: The embedding (vocab, embed) to use as table; None to create one.
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
    table = gathered(table.astype(self.dtype), *AXES[::-1])
    return Head(table, codes, up, self.softcap)


def _table(module: nn.Module, shape: tuple[int, int]) -> jax.Array:
  init = nn.with_logical_partitioning(nn.initializers.normal(0.02), AXES[::-1])
  return module.param('table', init, shape, module.param_dtype)


def _adapted(module: nn.Module) -> bool:
  return module.lora is not None and module.lora.adapts('/'.join(module.path))
