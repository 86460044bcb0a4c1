"""Batched greedy decoding with a key-value cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lora_opt.training.partitioning import Placement


def make_greedy_decoder(
  model: Any,
  max_new_tokens: int,
  end_id: int,
  placement: Placement,
) -> Callable[[Any, Any, jax.Array, jax.Array], jax.Array]:
  """Builds a jitted greedy decoder; each new prompt shape compiles once.

  Args:
    model: has `start_decoding(base, lora, tokens, valid, max_new_tokens)` and
      `decode_step(base, lora, cache, tokens)`; both return the logits of the
      next token of each row, and a cache.
    max_new_tokens: decoding stops after so many tokens, or as soon as every row
      has produced `end_id`.
    end_id: token that ends a completion.
    placement: of the model. The result is whole on every device.

  Returns:
    `decode(base, lora, tokens, valid) -> (batch, max_new_tokens)` int32 for
    prompts (batch, length) padded on the left, where `valid` is False; rows are
    filled with `end_id` behind their end.
  """

  def decode(base, lora, tokens, valid):
    logits, cache = model.start_decoding(
      base, lora, tokens, valid, max_new_tokens
    )
    out = jnp.full((tokens.shape[0], max_new_tokens), end_id, jnp.int32)

    def unfinished(carry):
      count, token, *_ = carry
      return (count < max_new_tokens) & jnp.any(token != end_id)

    def advance(carry):
      count, token, cache, out = carry
      out = out.at[:, count].set(token)
      logits, cache = model.decode_step(base, lora, cache, token)
      following = jnp.argmax(logits, -1).astype(jnp.int32)
      # A row that has ended stays ended, whatever the model would say next.
      following = jnp.where(token == end_id, end_id, following)
      return count + 1, following, cache, out

    token = jnp.argmax(logits, -1).astype(jnp.int32)
    start = (jnp.zeros((), jnp.int32), token, cache, out)
    return jax.lax.while_loop(unfinished, advance, start)[-1]

  return placement.jit(decode, out_shardings=placement.whole)
