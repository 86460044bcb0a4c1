"""Adapters that are initialised from the base weights: PiSSA and OLoRA.

Both split a kernel into W = residual + scale * a @ b, freeze the residual and
train the factors, so that the model starts exactly at W.
"""

import dataclasses
import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from lora_opt.models.lora import LoraConfig
from lora_opt.models.variables import Tree


def pissa(
  kernel: np.ndarray, rank: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
  """The largest singular directions of a kernel (arXiv 2404.02948).

  Args:
    kernel: (fan_in, fan_out) float64.
    rank: Number of directions.
    scale: Factor of a @ b in the model.

  Returns:
    a (fan_in, rank) and b (rank, fan_out): scale * a @ b is the best
    approximation of this rank, and the Gram matrices a.T @ a and b @ b.T are
    equal.

  >>> a, b = pissa(np.diag([3.0, 2.0, 1.0]), rank=2, scale=1.0)
  >>> np.round(a @ b, 9).tolist()
  [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
  """
  import scipy.linalg  # slow, and only needed here

  wide = kernel.shape[0] <= kernel.shape[1]
  w = kernel if wide else kernel.T
  # Only the leading singular vectors of the smaller side are needed.
  last = [len(w) - rank, len(w) - 1]
  _, u = scipy.linalg.eigh(w @ w.T, subset_by_index=last)
  v = u.T @ w
  root = np.sqrt(np.linalg.norm(v, axis=1) / scale)
  # If the rank of the kernel is lower than `rank`, some directions have length
  # 0.
  v = v / np.where(root > 0, scale * root, 1.0)[:, None]
  u = u * root
  return (u, v) if wide else (v.T, u.T)


def olora(
  kernel: np.ndarray, rank: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
  """A basis of the first rows of a kernel, by QR (arXiv 2406.01775).

  Args:
    kernel: (fan_in, fan_out) float64.
    rank: Number of basis vectors.
    scale: Not used: as in PEFT, what is subtracted from the kernel is
      scale * a @ b.

  Returns:
    a (fan_in, rank) and b (rank, fan_out); the rows of b are orthonormal.

  >>> a, b = olora(np.diag([3.0, 2.0, 1.0]), rank=2, scale=1.0)
  >>> np.round(a @ b, 9).tolist()
  [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
  """
  del scale
  # The first columns of Q depend on the first columns of W = kernel.T alone.
  q, _ = np.linalg.qr(kernel[:rank].T)
  return kernel @ q, q.T


def split_base(
  base: Tree, lora: LoraConfig, sites: Collection[str]
) -> tuple[Tree, Tree]:
  """Takes the starting factors of an adapter out of the base.

  The factors are computed in float64 on the host, so that the same checkpoint
  gives the same residual on another machine, where a run may be resumed.

  Args:
    base: Weights; not changed.
    lora: Adapter settings with a `start`.
    sites: Paths of the adapted projections.

  Returns:
    The residual base, placed like `base`, and the factors as the tree of an
    adapter. Residual plus scaled products is `base` up to rounding in its type.
  """
  flat, factors = traverse_util.flatten_dict(base, sep='/'), {}
  for site in sites:
    kernel = flat[f'{site}/kernel']
    stacked = kernel.ndim == 3
    a, b = _factors(kernel if stacked else kernel[None], lora)
    if not stacked:
      a, b = a[0], b[0]
    flat[f'{site}/kernel'] = _residual(kernel, a, b, lora.scale)
    factors |= {f'{site}/lora_a': a, f'{site}/lora_b': b}
  return (
    traverse_util.unflatten_dict(flat, sep='/'),
    traverse_util.unflatten_dict(factors, sep='/'),
  )


def adapter_in_force(
  lora_config: LoraConfig | None, lora: Tree | None, start: Tree | None
) -> tuple[LoraConfig | None, Tree | None]:
  """Settings and factors to run a model with; (None, None) for only the base.

  Args:
    lora_config: The model's settings.
    lora: The adapter to use, or None for the model of the checkpoint.
    start: What `split_base` took out of the base, or None.
  """
  if lora is not None:
    return lora_config, lora
  if start is None:
    return None, None
  return dataclasses.replace(lora_config, dora=False), start


def join_start(lora: Tree, start: Tree) -> Tree:
  """The adapter of twice the rank with the same effect on the original base.

  a @ b - a0 @ b0 is (a, a0) @ (b, -b0); other leaves stay as they are.
  """
  flat = traverse_util.flatten_dict(lora, sep='/')
  for path, factor in traverse_util.flatten_dict(start, sep='/').items():
    if path.endswith('/lora_a'):
      flat[path] = jnp.concatenate([flat[path], factor], axis=-1)
    else:
      flat[path] = jnp.concatenate([flat[path], -factor], axis=-2)
  return traverse_util.unflatten_dict(flat, sep='/')


def split_start(source: str, joined: Tree, start: Tree) -> Tree:
  """The inverse of `join_start`.

  Args:
    source: Path for the error message.
    joined: Adapter of twice the rank.
    start: The factors that its second half must match.

  Raises:
    ValueError: If the adapter did not start from this base.
  """
  flat = traverse_util.flatten_dict(joined, sep='/')
  known = traverse_util.flatten_dict(start, sep='/')
  for path in [path for path in known if path.endswith('/lora_a')]:
    site = path.removesuffix('/lora_a')
    a, a0 = jnp.split(flat[path], 2, axis=-1)
    b, b0 = jnp.split(flat[f'{site}/lora_b'], 2, axis=-2)
    # Products are compared, since the signs of the factors are arbitrary.
    theirs, ours = -(a0 @ b0), known[path] @ known[f'{site}/lora_b']
    if not jnp.allclose(theirs, ours, rtol=0, atol=1e-2 * abs(ours).max()):
      raise ValueError(
        f'{source}: the adapter of {site} did not start from the weights that '
        'this model takes out of its base; load it with the base and the '
        'start that it was trained with, or without start as a plain adapter'
      )
    flat[path], flat[f'{site}/lora_b'] = a, b
  return traverse_util.unflatten_dict(flat, sep='/')


def _factors(kernels: jax.Array, lora: LoraConfig) -> list[jax.Array]:
  pairs = []
  for kernel in kernels:
    whole = multihost_utils.process_allgather(kernel, tiled=True)
    pairs.append(lora.start(whole.astype(np.float64), lora.rank, lora.scale))
  return [
    jnp.asarray(np.stack(x), lora.dtype) for x in zip(*pairs, strict=True)
  ]


@functools.partial(jax.jit, static_argnums=3)
def _residual(
  kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float
) -> jax.Array:
  def one(kernel, a, b):
    product = a.astype(jnp.float32) @ b.astype(jnp.float32)
    return (kernel.astype(jnp.float32) - scale * product).astype(kernel.dtype)

  if kernel.ndim == 2:
    return one(kernel, a, b)
  return jax.lax.map(lambda layer: one(*layer), (kernel, a, b))
