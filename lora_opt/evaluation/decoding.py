"""Batched decoding with a key-value cache, greedy or sampled."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lora_opt.devices.partitioning import Placement


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn from the logits.

  The temperature is applied first, then `top_k`, then `top_p`.

  Attributes:
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: draw among the k likeliest tokens; None for no such limit.
    top_p: draw among the smallest set of the likeliest tokens whose total
      probability reaches this; None for no such limit.
    seed: seed of the draws. The draws for an example do not depend on its
      batch.

  Raises:
    ValueError: a value is out of range.

  >>> Sampling(temperature=0.7, top_p=1.5)
  Traceback (most recent call last):
    ...
  ValueError: top_p=1.5 must be above 0 and at most 1
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:
      raise ValueError(
        f'temperature={self.temperature} must be a finite number, at least 0'
      )
    if self.top_k is not None and self.top_k < 1:
      raise ValueError(f'top_k={self.top_k} must be at least 1')
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise ValueError(f'top_p={self.top_p} must be above 0 and at most 1')

  def pick(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws a token for each row.

    Args:
      logits: (batch, vocab) float32.
      keys: (batch,) random keys; unused if temperature is 0.

    Returns:
      (batch,) int32.
    """
    if self.temperature == 0:
      return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = logits / self.temperature
    draw = jax.vmap(jax.random.categorical)
    if self.top_k is None and self.top_p is None:
      return draw(keys, logits).astype(jnp.int32)
    count = min(self.top_k or logits.shape[-1], logits.shape[-1])
    likely, tokens = jax.lax.top_k(logits, count)
    if self.top_p is not None:
      chance = jax.nn.softmax(likely)
      before = jnp.cumsum(chance, axis=-1) - chance
      likely = jnp.where(before < self.top_p, likely, -jnp.inf)
    place = draw(keys, likely)[:, None]
    return jnp.take_along_axis(tokens, place, axis=-1)[:, 0].astype(jnp.int32)


GREEDY = Sampling()
# Marks a place where the logits were not finite, so no token could be drawn.
NO_TOKEN = -2


def make_decoder(
  model: Any,
  max_new_tokens: int,
  end_ids: Sequence[int],
  placement: Placement,
  sampling: Sampling = GREEDY,
  end_sequences: Sequence[Sequence[int]] = (),
) -> Callable[[Any, Any, jax.Array, jax.Array, jax.Array], jax.Array]:
  """Builds a jitted decoder; each new prompt shape compiles once.

  The whole loop runs on the device.

  Args:
    model: has `start_decoding(base, lora, tokens, valid, max_new_tokens)` and
      `decode_step(base, lora, cache, tokens)`; both return the logits of the
      next token of each row, and a cache. If it has `by_layer(base, lora)`,
      the steps on CPUs get the result of that instead of base and lora.
    max_new_tokens: decoding stops after this many tokens, or as soon as every
      row has ended.
    end_ids: tokens that end a completion, at least one.
    placement: placement of the model. The result is replicated on all devices.
    sampling: how a token is drawn.
    end_sequences: sequences of several tokens that end a completion.

  Returns:
    `decode(base, lora, tokens, valid, example) -> (batch, max_new_tokens)`
    int32 for prompts (batch, length) padded on the left, where `valid` is
    False. `example` (batch,) int32 makes the random draws of rows differ. After
    its end a row is filled with the first of `end_ids`, and a row without a
    prompt consists of it. A row whose logits are not finite ends with
    `NO_TOKEN`.
  """

  on_cpus = placement.mesh.devices.flat[0].platform == 'cpu'

  def decode(base, lora, tokens, valid, example):
    ends = jnp.asarray(end_ids, jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(sampling.seed), example
    )

    def pick(logits, count, ended, out):
      now = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
      lost = ~ended & ~jnp.isfinite(jnp.max(logits, axis=-1))
      token = jnp.where(ended | lost, ends[:1], sampling.pick(logits, now))
      out = out.at[:, count].set(jnp.where(lost, NO_TOKEN, token))
      ended |= lost | jnp.any(token[:, None] == ends[None], axis=1)
      for sequence in end_sequences:
        ended |= _ends_with(out, count + 1, sequence)
      return token, ended, out

    def unfinished(carry):
      count, _, ended, *_ = carry
      return (count < max_new_tokens) & ~jnp.all(ended)

    def advance(carry):
      count, token, ended, cache, out = carry
      logits, cache = model.decode_step(*weights, cache, token)
      token, ended, out = pick(logits, count, ended, out)
      return count + 1, token, ended, cache, out

    logits, cache = model.start_decoding(
      base, lora, tokens, valid, max_new_tokens
    )
    first = jnp.zeros((), jnp.int32)
    out = jnp.full((tokens.shape[0], max_new_tokens), end_ids[0], jnp.int32)
    token, ended, out = pick(logits, first, ~jnp.any(valid, axis=1), out)
    start = (first + 1, token, ended, cache, out)
    weights = base, lora
    if on_cpus and hasattr(model, 'by_layer'):
      weights = model.by_layer(base, lora)
    return jax.lax.while_loop(unfinished, advance, start)[-1]

  return placement.jit(decode, out_shardings=placement.whole)


def _ends_with(
  out: jax.Array, count: jax.Array, sequence: Sequence[int]
) -> jax.Array:
  """Which rows end with `sequence`; `count` of their tokens are written."""
  size = len(sequence)
  if size > out.shape[1]:
    return jnp.zeros(out.shape[0], bool)
  start = jnp.maximum(count - size, 0)
  last = jax.lax.dynamic_slice_in_dim(out, start, size, axis=1)
  same = jnp.all(last == jnp.asarray(sequence, jnp.int32), axis=1)
  return same & (count >= size)
