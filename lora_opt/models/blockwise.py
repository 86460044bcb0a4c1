"""Attention block by block, in memory that is linear in the length.

Each block of queries loops over the blocks of keys and keeps a running maximum
and a running sum, which give the softmax of the whole row in the end (arXiv
1805.02867, 2112.05682). The backward pass recomputes the weights of each block
from the logarithm of that sum (arXiv 2205.14135). Pairs of blocks are skipped
if causality or a window rules them out, or if they share no segment in any row:
in rows of packed examples that is most of them. It uses ordinary JAX
operations, so it runs everywhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.softcap import capped, slope
from lora_opt.models.visibility import (
  Side,
  Visibility,
  limit_of,
  visible_pairs,
)

# Queries, and keys, in a block. On a CPU the scores of larger blocks do not fit
# its caches, and with smaller blocks more can be skipped
# (experiments/training_step).
BLOCK, BLOCK_ON_CPUS = 256, 64


def forward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visibility,
  windowed: jax.Array | None = None,
  bias: OffsetBias | None = None,
  *,
  scale: float,
  softcap: float | None = None,
  window: int | None = None,
  block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
  """Attention, and the logarithms of the sums that `backward` needs.

  Sums are in float32. Weights are rounded to the type of v before they are
  multiplied by it, as in `jax.nn.dot_product_attention`. The result for a query
  that sees no key is 0.

  Args:
    q: (batch, length, heads, head_dim); heads that share keys are adjacent.
    k: (batch, keys, kv_heads, head_dim).
    v: Like k.
    seen: Which keys are visible.
    windowed: () bool, whether `window` applies; None for True.
    bias: Added to the scores; its gradient is not computed.
    scale: Factor of the scores.
    softcap: Soft cap of the scores, applied before the mask; None for no cap.
    window: Most keys that a query sees, itself included; None for all.
    block: Queries, and keys, in a block.

  Returns:
    (batch, length, heads, head_dim), of the type of q, and the logarithm of the
    sum of exponentials of each row of scores, (batch, heads, length) float32.
  """
  q, seen = _tied(q, seen)
  rows = _Rows.of(q, k, seen, limit_of(window, windowed), bias, softcap, block)
  keys, values = rows.split_keys(k), rows.split_keys(v)

  def of_queries(given):
    i, query = given

    def add(state, j):
      out, top, total = state
      scores, mask = rows.scores(query, keys[j], i, j, scale)
      above = jnp.maximum(top, jnp.where(mask, scores, _LOWEST).max(-1))
      weights = jnp.where(mask, jnp.exp(scores - above[..., None]), 0.0)
      shrink = jnp.exp(top - above)
      more = _product(
        'bkgqs,bksd->bkgqd', weights.astype(values.dtype), values[j]
      )
      total = total * shrink + weights.sum(-1)
      return out * shrink[..., None] + more, above, total

    zeros = jnp.zeros(query.shape, jnp.float32)
    first = zeros, jnp.full(zeros.shape[:-1], _LOWEST), zeros[..., 0]
    out, top, total = rows.over_keys(add, first, i)
    total = jnp.where(total == 0, 1.0, total)
    out = (out / total[..., None]).astype(q.dtype)
    return out, top + jnp.log(total)

  queries = rows.split_queries(q)
  out, sums = jax.lax.map(of_queries, (jnp.arange(len(queries)), queries))
  return rows.join_queries(out), rows.join_sums(sums)


def backward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visibility,
  windowed: jax.Array | None,
  bias: OffsetBias | None,
  out: jax.Array,
  sums: jax.Array,
  cotangent: jax.Array,
  *,
  scale: float,
  softcap: float | None = None,
  window: int | None = None,
  block: int = BLOCK,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of q, k and v.

  Args:
    q, k, v, seen, windowed, bias, scale, softcap, window, block: As for
      `forward`.
    out, sums: The results of `forward`.
    cotangent: The gradient of `out`.

  Returns:
    Arrays like q, k and v, accumulated in float32.
  """
  q, seen = _tied(q, seen)
  rows = _Rows.of(q, k, seen, limit_of(window, windowed), bias, softcap, block)
  keys, values = rows.split_keys(k), rows.split_keys(v)
  inner = (out.astype(jnp.float32) * cotangent.astype(jnp.float32)).sum(-1)
  inner = rows.split_sums(inner.swapaxes(1, 2))

  def of_queries(so_far, given):
    i, query, total, change, inner = given

    def products(j):
      scores, mask = rows.scores(query, keys[j], i, j, scale)
      weights = jnp.where(mask, jnp.exp(scores - total[..., None]), 0.0)
      of_weights = _product('bkgqd,bksd->bkgqs', change, values[j])
      of_scores = scale * weights * (of_weights - inner[..., None])
      of_scores *= slope(scores, softcap)
      of_scores = of_scores.astype(q.dtype)
      weights = weights.astype(values.dtype)
      return (
        _product('bkgqs,bksd->bkgqd', of_scores, keys[j]),
        _product('bkgqs,bkgqd->bksd', of_scores, query),
        _product('bkgqs,bkgqd->bksd', weights, change),
      )

    def add(state, j):
      to_query, to_keys, to_values = products(j)
      of_query, of_keys, of_values = state
      of_keys = of_keys.at[j].add(to_keys)
      of_values = of_values.at[j].add(to_values)
      return of_query + to_query, of_keys, of_values

    state = jnp.zeros(query.shape, jnp.float32), *so_far
    of_query, *so_far = rows.over_keys(add, state, i)
    return tuple(so_far), of_query.astype(q.dtype)

  queries = rows.split_queries(q)
  nothing = jnp.zeros(keys.shape, jnp.float32)
  (of_keys, of_values), of_queries_ = jax.lax.scan(
    of_queries,
    (nothing, nothing),
    (
      jnp.arange(len(queries)),
      queries,
      rows.split_sums(sums),
      rows.split_queries(cotangent),
      inner,
    ),
  )
  return (
    rows.join_queries(of_queries_),
    rows.join_keys(of_keys).astype(k.dtype),
    rows.join_keys(of_values).astype(v.dtype),
  )


# Below every score, but finite, so that differences are finite too.
_LOWEST = float(jnp.finfo(jnp.float32).min)


def _product(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _tied(q, seen):
  """Returns both behind a barrier, so that each layer computes its own masks.

  The masks are the same in all layers, so without it JAX would compute those of
  all pairs of blocks before the first layer, which takes memory that grows with
  the square of the length.
  """
  return jax.lax.optimization_barrier((q, seen))


def _ends(segments):
  """The smallest and largest segment along the last axis, padding ignored."""
  real, most = segments > 0, jnp.iinfo(jnp.int32).max
  return (
    jnp.where(real, segments, most).min(-1),
    jnp.where(real, segments, -1).max(-1),
  )


class _Rows(NamedTuple):
  """Rows, and how they are split into blocks."""

  seen: Visibility
  window: jax.Array | int | None
  bias: OffsetBias | None
  softcap: float | None
  kv_heads: int
  length: int  # of the queries
  keys: int
  block: int

  @classmethod
  def of(cls, q, k, seen, window, bias, softcap, block):
    sizes = k.shape[2], q.shape[1], k.shape[1], block
    return cls(seen, window, bias, softcap, *sizes)

  def over_keys(self, add, state, i):
    """Folds `add` over the blocks of keys that block i of the queries may see.

    The loop has a static length, so that plans can count its operations.

    Args:
      add: (state, index of a block of keys) -> state.
      state: The initial state.
      i: () int32, index of the block of queries.
    """
    shared = self.shared(i)
    first, last = 0, len(shared) - 1
    if self.seen.causal:
      last = i
      if self.window is not None and self.seen.branches is None:
        first = jnp.maximum(i * self.block - (self.window - 1), 0) // self.block

    def step(state, given):
      j, shared = given
      visible = shared & (first <= j) & (j <= last)
      return jax.lax.cond(visible, add, lambda state, j: state, state, j), None

    blocks = jnp.arange(len(shared), dtype=jnp.int32)
    return jax.lax.scan(step, state, (blocks, shared))[0]

  def shared(self, i):
    """Whether block i of the queries may see a segment of each block of keys.

    Returns:
      (blocks,) bool; False where the ranges of segment numbers do not overlap
      in any row.
    """
    first, last = _ends(self.side(i).segments)
    blocks = jnp.arange(-(-self.keys // self.block), dtype=jnp.int32)
    segments = jax.vmap(lambda j: self.side(j, True).segments)(blocks)
    first_key, last_key = _ends(segments)
    return ((first[None] <= last_key) & (first_key <= last[None])).any(-1)

  def scores(self, query, key, i, j, scale):
    """Scores (batch, kv_heads, group, queries, keys), and which are visible."""
    scores = scale * _product('bkgqd,bksd->bkgqs', query, key)
    scores = capped(scores, self.softcap)
    if self.bias is not None:
      bias = self.bias.of_block(i, j, self.block)
      scores += bias.reshape(1, self.kv_heads, -1, *bias.shape[1:])
    mask = visible_pairs(self.side(i), self.side(j, True), self.window)
    return scores, mask[:, None, None]

  def side(self, i, of_keys=False) -> Side:
    index = i * self.block + jnp.arange(self.block, dtype=jnp.int32)
    side = self.seen.side(index, of_keys)
    # What `take` returns beyond the end is arbitrary: nothing is visible there.
    inside = index < (self.keys if of_keys else self.length)
    nobody = -2 if of_keys else -1
    return side.replace(segments=jnp.where(inside[None], side.segments, nobody))

  def split_keys(self, x):
    """(batch, keys, heads, width) to (blocks, batch, heads, block, width)."""
    x = self._whole(x, 1)
    x = x.reshape(x.shape[0], -1, self.block, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))

  def join_keys(self, x):
    """The inverse of `split_keys`."""
    x = jnp.moveaxis(x, (0, 2), (1, 3))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : self.keys]

  def split_queries(self, x):
    """Splits (batch, length, heads, width) into blocks, and heads by key heads.

    Returns:
      (blocks, batch, kv_heads, group, block, width).
    """
    x = self.split_keys(x)
    return x.reshape(*x.shape[:2], self.kv_heads, -1, *x.shape[3:])

  def join_queries(self, x):
    """The inverse of `split_queries`."""
    x = x.reshape(*x.shape[:2], -1, *x.shape[4:])
    x = jnp.moveaxis(x, (0, 2), (1, 3))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : self.length]

  def split_sums(self, x):
    """(batch, heads, length) to (blocks, batch, kv_heads, group, block)."""
    return self.split_queries(x.swapaxes(1, 2)[..., None])[..., 0]

  def join_sums(self, x):
    """The inverse of `split_sums`."""
    return self.join_queries(x[..., None])[..., 0].swapaxes(1, 2)

  def _whole(self, x, axis):
    room = [(0, 0)] * x.ndim
    room[axis] = (0, -x.shape[axis] % self.block)
    return jnp.pad(x, room)
