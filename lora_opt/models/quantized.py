"""Frozen kernels in 8 or 4 bits, one scale per block (QLoRA, 2305.14314).

qwix does the rounding. Codes of 4 bits are stored two to a byte, since XLA on
CPUs unpacks an int4 array that a scan runs over to one byte per code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util

from lora_opt.models.products import product, product_by_transposed
from lora_opt.models.variables import Tree

# Kinds of codes, and how many of them a byte holds.
KINDS = {'int8': 1, 'int4': 2, 'nf4': 2}


@flax.struct.dataclass
class QuantizedKernel:
  """A kernel (..., fan_in, fan_out), or a stack of them, in few bits.

  Attributes:
    codes: (..., fan_in / codes per byte, fan_out) uint8; with 4 bits, row i
      holds the codes of inputs 2i (in the low half) and 2i + 1.
    scales: (..., fan_in / block, fan_out) bfloat16.
    kind: Key of `KINDS`.
  """

  codes: jax.Array
  scales: jax.Array
  kind: str = flax.struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the kernel that the codes stand for."""
    *stack, rows, fan_out = self.codes.shape
    return (*stack, rows * KINDS[self.kind], fan_out)

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return self.codes.ndim

  @property
  def size(self) -> int:
    """Number of weights that the codes stand for."""
    return self.codes.size * KINDS[self.kind]

  def __getitem__(self, layer: int) -> QuantizedKernel:
    """One kernel of a stack."""
    return jax.tree.map(lambda x: x[layer], self)


def quantize_kernel(
  kernel: jax.Array, kind: str, block: int = 64
) -> QuantizedKernel:
  """Rounds a kernel to codes times the largest magnitude in their block.

  Args:
    kernel: (fan_in, fan_out).
    kind: 'int8' or 'int4' for evenly spaced values, 'nf4' for the 16 values
      that suit normally distributed weights best.
    block: Number of inputs that share a scale, for each output; if fan_in is
      smaller, it is one block.

  Returns:
    The kernel in (8 or 4) + 16 / block bits per weight.

  Raises:
    ValueError: If `kind` is unknown, or fan_in is not a multiple of `block` and
      of the number of codes in a byte.

  >>> q = quantize_kernel(jnp.eye(4), 'nf4')
  >>> q.codes.shape, q.shape, dequantize(q, jnp.float32)[0].tolist()
  ((2, 4), (4, 4), [1.0, 0.0, 0.0, 0.0])
  """
  if kind not in KINDS:
    raise ValueError(f'{kind!r} must be one of {", ".join(KINDS)}')
  fan_in, fan_out = kernel.shape
  block = min(block, fan_in)
  if fan_in % block or fan_in % KINDS[kind]:
    raise ValueError(
      f'{kind} of a kernel {kernel.shape}: fan_in={fan_in} must be a multiple '
      f'of block={block} and of {KINDS[kind]}; choose another block'
    )
  import qwix  # slow (half a second), and only needed here

  rounded = qwix.quantize(
    kernel.astype(jnp.float32),
    kind,
    channelwise_axes=(1,),
    tiled_axes={0: block},
    scale_dtype=jnp.bfloat16,
  )
  codes = rounded.qvalue
  if KINDS[kind] == 1:
    codes = jax.lax.bitcast_convert_type(codes, jnp.uint8)
  else:
    if kind == 'int4':
      codes = jax.lax.bitcast_convert_type(codes, jnp.uint4)
    pairs = codes.astype(jnp.uint8).reshape(-1, 2, fan_out)
    codes = pairs[:, 0] | (pairs[:, 1] << 4)
  return QuantizedKernel(codes, rounded.scale, kind)


def dequantize(kernel: QuantizedKernel, dtype: jnp.dtype) -> jax.Array:
  """The kernel (fan_in, fan_out) that the codes stand for."""
  import qwix

  codes = kernel.codes
  if KINDS[kernel.kind] == 1:
    codes = jax.lax.bitcast_convert_type(codes, jnp.int8)
  else:
    pairs = jnp.stack([codes & 15, codes >> 4], axis=1)
    codes = pairs.reshape(kernel.shape).astype(jnp.uint4)
    if kernel.kind == 'int4':
      codes = jax.lax.bitcast_convert_type(codes, jnp.int4)
  array = qwix.QArray(codes, kernel.scales.astype(dtype), None, kernel.kind)
  return qwix.dequantize(array)


@jax.custom_vjp
def matmul(rows: jax.Array, kernel: QuantizedKernel) -> jax.Array:
  """rows @ kernel, for rows (count, fan_in).

  The backward pass dequantizes again, so that no copy of the kernel in full
  precision is kept. The kernel is frozen: it has no gradient.
  """
  return product(rows, dequantize(kernel, rows.dtype))


def _forward(rows, kernel):
  return matmul(rows, kernel), kernel


def _backward(kernel, gradient):
  back = product_by_transposed(gradient, dequantize(kernel, gradient.dtype))
  return back, None


matmul.defvjp(_forward, _backward)


def quantize_stack(
  kernels: Iterable[jax.Array], kind: str, block: int = 64
) -> QuantizedKernel:
  """Quantizes kernels one by one as they are produced, and stacks them."""
  run = jax.jit(quantize_kernel, static_argnums=(1, 2))
  layers = [run(kernel, kind, block) for kernel in kernels]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def quantize_base(base: Tree, sites: Collection[str], kind: str) -> Tree:
  """Quantizes the kernels of projections; the rest stays as it is.

  Args:
    base: Weights; not changed.
    sites: Paths of projections. Tables among them, and kernels that are
      already quantized, stay as they are too.
    kind: Key of `KINDS`.
  """
  flat = traverse_util.flatten_dict(base, sep='/')
  for path in (f'{site}/kernel' for site in sites):
    kernel = flat.get(path)
    if kernel is None or isinstance(kernel, QuantizedKernel):
      continue
    if kernel.ndim == 3:
      layers = (kernel[layer] for layer in range(len(kernel)))
      flat[path] = quantize_stack(layers, kind)
    else:
      flat[path] = quantize_kernel(kernel, kind)
  return traverse_util.unflatten_dict(flat, sep='/')


def stored_dtype(base: Tree) -> jnp.dtype:
  """The type of the weights that are not quantized."""
  leaves = jax.tree.leaves(base, is_leaf=_is_quantized)
  return next(leaf.dtype for leaf in leaves if not _is_quantized(leaf))


def _is_quantized(x) -> bool:
  return isinstance(x, QuantizedKernel)


def leaves_by_path(tree: Tree) -> dict[str, Any]:
  """Flattens a tree to {'layers/attention/q/kernel': leaf, ...}."""
  flat, _ = jax.tree.flatten_with_path(
    tree, is_leaf=lambda x: isinstance(x, QuantizedKernel)
  )
  keystr = jax.tree_util.keystr
  return {keystr(p, simple=True, separator='/'): leaf for p, leaf in flat}
