"""Attention by a kernel of NVIDIA GPUs: JAX's own, in Pallas by way of Triton.

It takes packed rows, in either direction. cuDNN's kernel, the other one that
comes with JAX, takes them as a mask of all pairs alone, which grows with the
square of the length.

(JAX's module is imported where it is used: that takes most of a second.)
"""

import functools

import jax
import jax.numpy as jnp

from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.visibility import Visibility

# Rows of the forward pass come in as many, those of the backward in fewer.
_BLOCK = 128


def refusal(
  q: jax.Array, seen: Visibility, window: int | None, bias: OffsetBias | None
) -> str:
  """Why the kernel cannot do this; '' if it can."""
  width = q.shape[-1]
  if seen.branches is not None:
    return 'segments branch'
  if bias is not None:
    return 'scores have biases'
  if window is not None:
    return 'a window ends what is seen'
  if seen.key_segments is not None:
    return 'queries and keys are of different texts'
  if width & (width - 1) or not 16 <= width <= 256:
    return f'head_dim={width} is no power of two from 16 to 256'
  return ''


def forward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visibility,
  windowed: None = None,
  bias: None = None,
  *,
  scale: float,
  window: None = None,
  emulated: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Attention; see `blockwise.forward`, and `refusal` for what is not taken.

  The second result is to the base 2.
  """
  assert windowed is bias is window is None
  attend = _kernel(q, seen, scale, emulated, return_residuals=True)
  with jax.numpy_dtype_promotion('standard'):
    out, sums = attend(q, k, v)
  length = q.shape[1]
  return out[:, :length], sums[:, :, :length]


def backward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visibility,
  windowed: None,
  bias: None,
  out: jax.Array,
  sums: jax.Array,
  cotangent: jax.Array,
  *,
  scale: float,
  window: None = None,
  emulated: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of q, k and v; the forward pass is run once more."""
  del windowed, bias, out, sums, window
  attend = _kernel(q, seen, scale, emulated, return_residuals=False)
  with jax.numpy_dtype_promotion('standard'):
    whole, differentiate = jax.vjp(attend, q, k, v)
    room = whole.shape[1] - cotangent.shape[1]
    return differentiate(_padded(cotangent, room, 0))


def _kernel(q, seen, scale, emulated, **settings):
  """A function of q, k and v."""
  from jax.experimental.pallas.ops.gpu import attention as kernels

  room = -q.shape[1] % _BLOCK
  # What is added sees itself alone, and nothing sees it.
  segments = _padded(seen.segments, room, -1)
  heads, width = q.shape[2:]
  # The memory of a multiprocessor has to hold them, on an A100 too.
  rows = max(32, min(_BLOCK, 2**14 // (width * q.dtype.itemsize)))
  blocks = kernels.BlockSizes(
    block_q=rows,
    block_k=rows,
    block_q_dkv=32,
    block_kv_dkv=32,
    block_q_dq=32,
    block_kv_dq=32,
  )
  run = functools.partial(
    kernels.mha,
    segment_ids=segments,
    sm_scale=scale,
    causal=seen.causal,
    block_sizes=blocks,
    interpret=emulated,
    **settings,
  )

  def attend(q, k, v):
    # It wants keys for every head.
    k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    return run(*(_padded(x, room, 0) for x in (q, k, v)))

  return attend


def _padded(x, room, value):
  rest = [(0, 0)] * (x.ndim - 2)
  return jnp.pad(x, [(0, 0), (0, room), *rest], constant_values=value)
