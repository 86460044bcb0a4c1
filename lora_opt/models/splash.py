"""Attention by the kernel of TPUs: JAX's splash attention.

Scores stay on the chip, block by block; blocks that causality or a window
rules out are not visited. What the kernel is given grows with the length.

(JAX's module is imported where it is used: that takes most of a second.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.visibility import Visibility

# The kernel works on rows of whole lanes.
LANES = 128
# Rows of queries and keys at a time: the largest of these that divides.
_BLOCKS = (1024, 512, 384, 256, 128)


def refusal(
  q: jax.Array,
  seen: Visibility,
  window: int | None,
  bias: OffsetBias | None,
  softcap: float | None,
) -> str:
  """Why the kernel cannot do this; '' if it can."""
  del q, window, softcap  # it takes every width, windows and caps
  if seen.branches is not None:
    return 'segments branch'
  return '' if bias is None else 'scores have biases'


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
  emulated: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Attention; arguments and results are those of `blockwise.forward`.

  Args:
    q, k, v, windowed, scale, softcap, window: See there.
    seen: Which keys are visible; without branches.
    bias: None.
    emulated: Run the kernel's program step by step, where there is no TPU.
  """
  assert bias is None
  length = q.shape[1]

  def attend(window, *given):
    kernel = _kernel(q, k, seen.causal, window, softcap, emulated)
    out, (sums,) = jax.vmap(kernel)(*_arguments(*given, scale))
    return out.swapaxes(1, 2)[:, :length], sums[:, :, :length]

  return _by_window(attend, window, windowed, q, k, v, seen)


def backward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visibility,
  windowed: jax.Array | None,
  bias: None,
  out: jax.Array,
  sums: jax.Array,
  cotangent: jax.Array,
  *,
  scale: float,
  softcap: float | None = None,
  window: int | None = None,
  emulated: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of q, k and v; see `forward` and `blockwise.backward`.

  By the kernel's own rule, which is not a public function: differentiating the
  public one would run all of the forward pass again, only for its results.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
  )

  del bias

  def differentiate(window, q, k, v, seen, out, sums, cotangent):
    kernel = _kernel(q, k, seen.causal, window, softcap, emulated)
    settings = [kernel.kwargs[name] for name in _SETTINGS]
    known = kernel.dq_mask_info, kernel.dkv_mask_info

    def of_row(q, k, v, segments, out, sums, cotangent):
      results = q, k, v, segments, None, out, sums, *known
      rule = splash_attention_kernel._splash_attention_bwd
      return rule(False, *settings, results, cotangent)[3:6]

    gradients = jax.vmap(of_row)(
      *_arguments(q, k, v, seen, scale),
      _padded(out.swapaxes(1, 2), 2, 0),
      _padded(sums, 2, 0),
      _padded(cotangent.swapaxes(1, 2), 2, 0),
    )
    of_q, of_k, of_v = (
      gradient.swapaxes(1, 2)[:, : x.shape[1]]
      for gradient, x in zip(gradients, (q, k, v), strict=True)
    )
    return of_q * jnp.asarray(scale, of_q.dtype), of_k, of_v

  given = q, k, v, seen, out, sums, cotangent
  return _by_window(differentiate, window, windowed, *given)


# What the rule wants to know of a kernel, in its order.
_SETTINGS = (
  'mask_value',
  'is_mqa',
  'block_sizes',
  'residual_checkpoint_name',
  'mask_function',
  'attn_logits_soft_cap',
  'interpret',
)


def _by_window(function, window, windowed, *given):
  """Two kernels where it depends on the layer: a window is part of a kernel."""
  with jax.numpy_dtype_promotion('standard'):
    if window is None or windowed is None:
      return function(window, *given)
    return jax.lax.cond(
      windowed,
      functools.partial(function, window),
      functools.partial(function, None),
      *given,
    )


def _kernel(q, k, causal, window, softcap, emulated):
  lengths = tuple(_whole(x.shape[1]) for x in (q, k))
  return _built(q.shape[2], lengths, causal, window, softcap, emulated)


# What a kernel knows of its mask are numbers, so that programs may share it;
# for rows of 128k tokens it takes seconds to look at all blocks.
@functools.lru_cache(maxsize=32)
def _built(heads, lengths, causal, window, softcap, emulated):
  from jax.experimental.pallas.ops.tpu import splash_attention

  if window is not None:
    local = _by_distance(splash_attention.LocalMask, window)
    mask = local(lengths, (window - 1, 0), offset=0)
  elif causal:
    mask = _by_distance(splash_attention.CausalMask, 0)(lengths)
  else:
    mask = splash_attention.FullMask(lengths)
  rows, columns = map(_block, lengths)
  blocks = splash_attention.BlockSizes(
    block_q=rows,
    block_kv=columns,
    block_q_dkv=rows,
    block_kv_dkv=columns,
    block_kv_dkv_compute=columns,
    block_q_dq=rows,
    block_kv_dq=columns,
  )
  with jax.ensure_compile_time_eval():
    kernel = splash_attention.make_splash_mha_single_device(
      splash_attention.MultiHeadMask([mask] * heads),
      block_sizes=blocks,
      save_residuals=True,
      attn_logits_soft_cap=softcap,
      interpret=emulated,
    )
    return jax.tree.map(np.asarray, kernel)


def _by_distance(kind: type, reach: int) -> type:
  """A kind of mask whose blocks are not worked out one by one.

  Building a kernel looks at every block, of which there are thousands in a
  long row. They are all alike but for how far rows are from columns.

  Args:
    kind: A mask that depends on row less column alone.
    reach: Distance from which on it is always the same.
  """
  known = {}

  class ByDistance(kind):
    __hash__ = kind.__hash__

    def __getitem__(self, index):
      (first, last, _), (left, right, _) = (
        part.indices(length)
        for part, length in zip(index, self.shape, strict=True)
      )
      height, width = last - first, right - left
      if width == 1:  # whole columns, which would be many
        return super().__getitem__(index)
      distance = max(-height, min(first - left, reach + width))
      key = distance, height, width
      if key not in known:
        rows = distance + np.arange(height, dtype=np.int32)
        columns = np.arange(width, dtype=np.int32)
        known[key] = self.mask_function(rows[:, None], columns[None, :])
      return known[key]

  return ByDistance


def _arguments(q, k, v, seen, scale):
  """What the kernel takes of each row: heads first, whole lanes."""
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  q = (q * jnp.asarray(scale, q.dtype)).swapaxes(1, 2)
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  q, k, v = (_padded(x, 2, 0) for x in (q, k, v))
  # What is added sees itself alone, and nothing sees it.
  ids = (_padded(x, 1, -1) for x in (seen.segments, seen.keys))
  return q, k, v, SegmentIds(*ids)


def _padded(x, axis, value):
  room = [(0, 0)] * x.ndim
  room[axis] = (0, _whole(x.shape[axis]) - x.shape[axis])
  return jnp.pad(x, room, constant_values=value)


def _whole(length: int) -> int:
  return -(-length // LANES) * LANES


def _block(length: int) -> int:
  return next(size for size in _BLOCKS if length % size == 0)
