"""Rotary positions: each pair of a head rotates at its own frequency."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.models.config import DecoderConfig


class Rotation(NamedTuple):
  """How the pairs of a head are rotated at each position."""

  cos: jax.Array  # (batch, length, rotary_dim / 2) float32
  sin: jax.Array  # the same

  def where(self, rotated: jax.Array) -> 'Rotation':
    """This rotation if a () bool is true, and no rotation otherwise."""
    return Rotation(
      jnp.where(rotated, self.cos, 1.0), jnp.where(rotated, self.sin, 0.0)
    )


def rotation(
  config: DecoderConfig,
  positions: jax.Array,
  lengths: jax.Array | None = None,
  local: bool = False,
) -> Rotation | None:
  """The rotation at every position; None if positions are learned.

  Args:
    config: Sets the frequencies.
    positions: (batch, length) int32.
    lengths: (batch, length or 1) int32, number of tokens in the text that each
      token belongs to, if the frequencies depend on it; None for at most
      `rope_context`.
    local: Whether the rotation is for the windowed layers.
  """
  c = config
  if c.learned_positions:
    return None
  theta, scaled = c.rope_theta, True
  if local and c.local_rope_theta is not None:
    theta, scaled = c.local_rope_theta, False
  width = c.rotary_dim or c.head_dim
  exponent = jnp.arange(0, width, 2, dtype=jnp.float32)[None, None]
  frequency = theta ** (-exponent / width)
  if scaled and c.rope_divisors:
    frequency = frequency / _divisors(c, lengths)
  if scaled and c.dynamic_rope is not None and lengths is not None:
    # NTK-aware scaling: theta grows with texts longer than the context.
    times = lengths.astype(jnp.float32)[..., None] / c.rope_context
    growth = jnp.maximum(c.dynamic_rope * (times - 1) + 1, 1.0)
    frequency = frequency * growth ** (-exponent / (width - 2))
  angles = positions.astype(jnp.float32)[..., None] * frequency
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if scaled and c.rope_gain != 1:
    cos, sin = cos * c.rope_gain, sin * c.rope_gain
  return Rotation(cos, sin)


def _divisors(config, lengths):
  """(batch or 1, length or 1, rotary_dim / 2)."""
  short, long = (
    jnp.array(divisors, jnp.float32)[None, None]
    for divisors in (config.rope_divisors, config.long_rope_divisors)
  )
  if not config.long_rope_divisors or lengths is None:
    return short
  return jnp.where((lengths > config.rope_context)[..., None], long, short)


def text_lengths(segments: jax.Array, positions: jax.Array) -> jax.Array:
  """Number of tokens in the text that each token of packed rows belongs to.

  For a text with branches, it is the largest position plus one.

  Args:
    segments: (batch, length) int32, with values of at most `length`.
    positions: (batch, length) int32, counted from 0 in each text.

  Returns:
    (batch, length) int32.

  >>> segments, positions = jnp.array([[1, 1, 1, 2]]), jnp.array([[0, 1, 2, 0]])
  >>> text_lengths(segments, positions).tolist()
  [[3, 3, 3, 1]]
  """

  def of_row(segments, positions):
    count = segments.shape[0] + 1
    return jax.ops.segment_max(positions, segments, count)[segments] + 1

  return jax.vmap(of_row)(segments, positions)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates pairs (i, i + rotary_dim / 2) of every head, as Hugging Face does.

  Args:
    x: (batch, length, heads, head_dim).
    rotation: The rotation at each position; dimensions beyond its width are
      not changed.

  Returns:
    An array of the shape and type of x.
  """
  cos, sin = (part[:, :, None] for part in rotation)
  width = cos.shape[-1]
  x1, x2, rest = jnp.split(x.astype(jnp.float32), [width, 2 * width], axis=-1)
  turned = [x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest]
  return jnp.concatenate(turned, -1).astype(x.dtype)
