"""Which keys a query may see, in memory that is linear in the length.

The mask of a row, one bool for each pair of query and key, grows with the
square of its length. What it is computed from does not: the segment and branch
of every token, and two rules (causal, windowed). Kernels read these instead.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Visibility:
  """What determines the keys that each query sees, in rows of packed examples.

  A key is visible when it belongs to the query's segment and, if `causal`, is
  not later than the query. If segments branch, it must also be in the shared
  prefix (branch 0) or in the query's branch.

  Attributes:
    segments: (batch, length) int32 of the queries, 0 on padding.
    key_segments: (batch, keys) int32; None if queries and keys are the same
      tokens.
    branches: (batch, length) int32, 0 in the prefix of a segment and k > 0 in
      its k-th continuation; None when no segment branches.
    positions: (batch, length) int32, in which windows are measured; None to
      use the index in the row. In a segment without branches positions increase
      by one, so both give the same windows.
    causal: Whether only keys up to the query are visible.
  """

  segments: jax.Array
  key_segments: jax.Array | None = None
  branches: jax.Array | None = None
  positions: jax.Array | None = None
  causal: bool = struct.field(pytree_node=False, default=True)

  @property
  def keys(self) -> jax.Array:
    """Segments of the keys, (batch, keys)."""
    return self.segments if self.key_segments is None else self.key_segments

  def mask(self, window: jax.Array | int | None = None) -> jax.Array:
    """Computes the mask, for short rows.

    Args:
      window: Most keys that a query sees, itself included; None for all.

    Returns:
      (batch, length, keys) bool.

    >>> seen = Visibility(jnp.array([[1, 1, 1, 2]]))
    >>> seen.mask().astype(int)[0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    >>> seen.mask(window=2).astype(int)[0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    """
    queries, keys = (
      jnp.arange(x.shape[1], dtype=jnp.int32)
      for x in (self.segments, self.keys)
    )
    return visible_pairs(self.side(queries), self.side(keys, True), window)

  def side(self, index: jax.Array, of_keys: bool = False) -> 'Side':
    """Segments, branches and positions of some queries, or of some keys.

    Args:
      index: (n,) int32, their indices in the row.
      of_keys: Whether these are keys.
    """
    segments = self.keys if of_keys else self.segments

    def take(x):
      return None if x is None else jnp.take(x, index, axis=1)

    positions = self.positions
    if positions is None:
      positions = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    order = index if self.causal else None
    return Side(order, take(segments), take(self.branches), take(positions))


@struct.dataclass
class Side:
  """The queries or the keys of a block.

  Attributes:
    order: (n,) int32, indices in the row; None if order does not matter.
    segments: (batch, n) int32.
    branches: (batch, n) int32, or None.
    positions: (batch or 1, n) int32.
  """

  order: jax.Array | None
  segments: jax.Array
  branches: jax.Array | None
  positions: jax.Array


def limit_of(
  window: int | None, windowed: jax.Array | None
) -> jax.Array | int | None:
  """How many keys a query sees at most; None for all.

  Args:
    window: Most keys that a query sees, itself included, where the window
      applies; None for all.
    windowed: () bool, whether the window applies; None for True.
  """
  if window is None or windowed is None:
    return window
  return jnp.where(windowed, window, jnp.iinfo(jnp.int32).max)


def visible_pairs(
  queries: Side, keys: Side, window: jax.Array | int | None
) -> jax.Array:
  """Which of the keys each query may see, (batch, queries, keys) bool."""
  mask = keys.segments[:, None, :] == queries.segments[:, :, None]
  if queries.order is not None:
    mask = mask & (keys.order[None, :] <= queries.order[:, None])[None]
  if queries.branches is not None:
    key, query = keys.branches[:, None, :], queries.branches[:, :, None]
    mask = mask & ((key == 0) | (key == query))
  if window is not None:
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    mask = mask & (distance < window)
  return mask
