"""DoRA: trains the lengths of weight columns separately (arXiv 2402.09353)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.quantized import QuantizedKernel, dequantize


def column_gain(
  module: nn.Module,
  kernel: jax.Array | QuantizedKernel,
  a: jax.Array,
  b: jax.Array,
  axis: str,
) -> jax.Array:
  """DoRA's factor for the outputs of kernel + scale * a @ b.

  It is the magnitude divided by the norm of each column. The magnitudes are
  initialised to the norms and trained. The norms change with the factors a and
  b, but are constants in the gradient, as in section 4.3 of the paper.

  Args:
    module: Has a field lora; `magnitude` is stored in its collection `lora`.
    kernel: (fan_in, fan_out).
    a: (fan_in, rank).
    b: (rank, fan_out).
    axis: Logical name of fan_out.

  Returns:
    (1, fan_out) float32.
  """
  if isinstance(kernel, QuantizedKernel):
    kernel = dequantize(kernel, jnp.float32)
  norms = jax.lax.stop_gradient(column_norms(kernel, a, b, module.lora.scale))

  def make():
    return nn.LogicallyPartitioned(norms.astype(module.lora.dtype), (axis,))

  magnitude = module.variable('lora', 'magnitude', make).value
  return (magnitude.astype(jnp.float32) / norms)[None]


def column_norms(
  kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float
) -> jax.Array:
  """Euclidean norms of the columns of kernel + scale * a @ b, in float32.

  The sum is never formed: what the product adds to the squared norms of the
  frozen kernel is computed from matrices with only `rank` rows or columns.

  Args:
    kernel: (fan_in, fan_out).
    a: (fan_in, rank).
    b: (rank, fan_out).
    scale: Factor of the product.

  Returns:
    (fan_out,) float32.

  >>> eye = jnp.eye(2)
  >>> column_norms(3 * eye, eye, jnp.array([[0.0, 0.0], [4.0, 0.0]]), 1.0)
  Array([5., 3.], dtype=float32)
  """
  w, a, b = (x.astype(jnp.float32) for x in (kernel, a, b))
  cross = 2 * scale * (a.T @ w) + scale**2 * (a.T @ a) @ b
  squares = jnp.sum(w * w, axis=0) + jnp.sum(b * cross, axis=0)
  # Rounding errors can make the squared norm of a zero column negative.
  return jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
