"""Attention with JAX's own kernel for NVIDIA GPUs, in Pallas on Triton.

It supports packed rows, in both the forward and the backward pass. cuDNN's
kernel, the other one that comes with JAX, supports them only with a mask of all
pairs, which grows with the square of the length.

JAX's module is imported where it is used, since that takes most of a second.
"""

import types
import warnings

import jax
import jax.numpy as jnp

from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.visibility import Visibility

# Lengths are padded to a multiple of this. It is also the largest block of the
# forward pass; blocks of the backward pass are smaller.
_BLOCK = 128


def refusal(
  q: jax.Array,
  seen: Visibility,
  window: int | None,
  bias: OffsetBias | None,
  softcap: float | None,
) -> str:
  """Why the kernel does not support these arguments; '' if it does."""
  width = q.shape[-1]
  if seen.branches is not None:
    return 'segments branch'
  if bias is not None:
    return 'scores have biases'
  if softcap is not None:
    return 'scores are capped'
  if window is not None:
    return 'a window ends what is seen'
  if seen.key_segments is not None:
    return 'queries and keys are of different texts'
  if width & (width - 1) or not 16 <= width <= 256:
    return f'head_dim={width} is not a power of two from 16 to 256'
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
  softcap: None = None,
  window: None = None,
  emulated: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Attention; see `blockwise.forward`, and `refusal` for what is unsupported.

  The logarithms in the second result are to base 2.
  """
  kernels = _kernels()
  assert windowed is bias is softcap is window is None
  settings = _settings(q, seen, scale, emulated)
  with jax.numpy_dtype_promotion('standard'):
    out, sums = kernels.mha(
      *_inputs(q, k, v, seen), **settings, return_residuals=True
    )
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
  softcap: None = None,
  window: None = None,
  emulated: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of q, k and v; see `forward` and `blockwise.backward`.

  It calls the kernel's own backward rule, which is not public: differentiating
  the public function would rerun the whole forward pass just for its results.
  """
  kernels = _kernels()
  del windowed, bias, softcap, window
  length, (heads, width) = q.shape[1], k.shape[2:]
  settings = {'num_stages': 2, 'grid': None, 'return_residuals': False}
  settings |= {'backward_pass_impl': 'triton', 'num_warps': None}
  settings |= {'debug': False, **_settings(q, seen, scale, emulated)}
  with jax.numpy_dtype_promotion('standard'):
    of_q, of_k, of_v, _ = kernels._mha_backward(
      **settings,
      res=(
        *_inputs(q, k, v, seen),
        _padded(out, 0),
        jnp.swapaxes(_padded(sums.swapaxes(1, 2), 0), 1, 2),
      ),
      do=_padded(cotangent, 0),
    )
  # Gradients of each query head; heads that share keys are adjacent.
  of_k, of_v = (
    x.reshape(*x.shape[:2], heads, -1, width).sum(3, dtype=jnp.float32)
    for x in (of_k, of_v)
  )
  gradients = of_q, of_k.astype(k.dtype), of_v.astype(v.dtype)
  return tuple(x[:, :length] for x in gradients)


def _kernels() -> types.ModuleType:
  """JAX's module; from JAX 0.12 on its import warns and points to tokamax."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    from jax.experimental.pallas.ops.gpu import attention
  return attention


def _settings(q, seen, scale, emulated):
  """The arguments of a kernel that are not arrays."""
  kernels = _kernels()
  width = q.shape[-1]
  # Blocks must fit in the memory of a multiprocessor, even on an A100.
  rows = max(32, min(_BLOCK, 2**14 // (width * q.dtype.itemsize)))
  blocks = kernels.BlockSizes(
    block_q=rows,
    block_k=rows,
    block_q_dkv=32,
    block_kv_dkv=32,
    block_q_dq=32,
    block_kv_dq=32,
  )
  return {
    'sm_scale': scale,
    'causal': seen.causal,
    'block_sizes': blocks,
    'interpret': emulated,
  }


def _inputs(q, k, v, seen):
  """The array arguments of a kernel: whole blocks, and keys for every head."""
  k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  # The padding sees only itself, and no token sees it.
  segments = _padded(seen.segments, -1)
  return *(_padded(x, 0) for x in (q, k, v)), segments


def _padded(x, value):
  room, rest = -x.shape[1] % _BLOCK, [(0, 0)] * (x.ndim - 2)
  return jnp.pad(x, [(0, 0), (0, room), *rest], constant_values=value)
