"""Attention with JAX's kernel for TPUs, splash attention.

Scores are computed block by block and stay on the chip; blocks that causality
or a window rules out are skipped. The kernel's inputs grow with the length.

(JAX's module is imported where it is used, since that takes most of a second.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.visibility import Visibility

# The kernel needs lengths that are a multiple of the number of lanes.
LANES = 128
# Possible numbers of queries and of keys in a block: the largest that divides
# the length is used.
_BLOCKS = (1024, 512, 384, 256, 128)


def refusal(
  q: jax.Array,
  seen: Visibility,
  window: int | None,
  bias: OffsetBias | None,
  softcap: float | None,
) -> str:
  """Why the kernel does not support these arguments; '' if it does."""
  del q, window, softcap  # it supports every width, windows and caps
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
    q, k, v, windowed, scale, softcap, window: See `blockwise.forward`.
    seen: Which keys are visible; must not have branches.
    bias: Must be None.
    emulated: Emulate the kernel step by step, for machines without a TPU.
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

  It calls the kernel's own backward rule, which is not public: differentiating
  the public function would rerun the whole forward pass just for its results.
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


# Settings of a kernel that the backward rule takes, in its order.
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
  """Chooses between kernels with and without the window if layers differ."""
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


# A kernel stores its mask as NumPy arrays, so that programs can share it. For
# rows of 128k tokens it takes seconds to look at all blocks.
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
  """Returns a subclass of a mask that computes equal blocks only once.

  Building a kernel looks at every block, and a long row has thousands of them.
  They differ only in the distance between their rows and columns.

  Args:
    kind: Class of masks that depend only on row minus column.
    reach: Distance from which on the mask is constant.
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
      if width == 1:  # a whole column: too many to store
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
  """The arguments of the kernel for each row: heads first, padded lengths."""
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  q = (q * jnp.asarray(scale, q.dtype)).swapaxes(1, 2)
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  q, k, v = (_padded(x, 2, 0) for x in (q, k, v))
  # The padding sees only itself, and no token sees it.
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
