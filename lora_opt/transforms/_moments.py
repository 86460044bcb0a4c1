"""Adam's second moment as a matrix: the r x r part of LoRA-RITE.

Everything here is one batch of r x r matrices, (total, r, r), with one entry
for each factor of each pair.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lora_opt import linalg


class MomentSettings(NamedTuple):
  """Settings of LoRA-RITE's moments; see `lora_opt.lora_rite`."""

  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-6
  clip_norm: float | None = None
  skip_rms: float | None = None
  escaped_mass: Literal['trace', 'eigenvalues'] | None = 'trace'
  rtol: float = 1e-3
  mean_square: bool = True

  def of_product(self, scale: float) -> 'MomentSettings':
    """Converts limits for gradients of W + scale A B^T to limits for A B^T."""

    def times(bound):
      return None if bound is None else bound * scale

    return self._replace(
      eps=self.eps * scale,
      clip_norm=times(self.clip_norm),
      skip_rms=times(self.skip_rms),
    )


class Moments(NamedTuple):
  """The result of one update of the moments."""

  nu: jax.Array  # (total, r, r): V
  escaped: jax.Array  # (total,): rho
  root: jax.Array  # (total, r, r): (V + rho I)^(-1/2) times the kept part of g
  squares: jax.Array  # (total, r, r): g^T g as passed in
  decay: jax.Array  # (): b1'


def update_moments(
  settings: MomentSettings,
  squares: jax.Array,
  change: jax.Array,
  nu: jax.Array,
  escaped: jax.Array,
  count: jax.Array,
  dims: jax.Array,
  ranks: jax.Array,
  method: linalg.Method = 'platform',
) -> Moments:
  """Computes V <- b2' P V P^T + (1 - b2') g^T g / m, and its inverse root.

  Args:
    settings: settings of the moments.
    squares: (total, r, r), g^T g of the unmagnified gradients.
    change: (total, r, r), P, from the old basis to the new.
    nu: (total, r, r), V.
    escaped: (total,), rho.
    count: (), steps taken, this one included.
    dims: (total,), m of each g.
    ranks: (total,), true ranks, without padding.
    method: method of the r x r work.

  Returns:
    `Moments`.
  """
  dtype = squares.dtype
  dims, ranks = dims.astype(dtype), ranks.astype(dtype)
  decay1 = corrected_decay(settings.b1, count, dtype)
  decay2 = corrected_decay(settings.b2, count, dtype)
  keep = _kept_part(settings, squares, dims * ranks)
  # Multiplication alone is not enough: squares that are not kept may be NaN.
  kept = jnp.where(keep > 0, squares * jnp.square(keep), 0)
  if settings.mean_square:
    kept = kept / dims[:, None, None]
  carried = linalg.symmetrize(
    linalg.matmul(linalg.matmul(change, nu), change.mT)
  )
  v = linalg.symmetrize(decay2 * carried + (1 - decay2) * kept)
  if settings.escaped_mass == 'eigenvalues':
    lost = _lost_eigenvalue(nu, linalg.after(carried, v), method)
    v = linalg.after(v, lost)
  else:
    lost = _lost_trace(nu, carried)
  if settings.escaped_mass is not None:
    escaped = decay2 * (escaped + lost)
  root = keep * linalg.inverse_root(
    v,
    rtol=settings.rtol**2,
    shift=escaped,
    eps=settings.eps,
    method=method,
  )
  return Moments(v, escaped, root, squares, decay1)


def _kept_part(settings, squares, sizes):
  """The number, (total, 1, 1), that each gradient is multiplied by."""
  sums = jnp.trace(squares, axis1=1, axis2=2)
  keep = jnp.isfinite(sums)
  if settings.skip_rms is not None:
    keep &= ~(jnp.sqrt(sums / sizes) > settings.skip_rms)
  keep = jnp.where(keep, 1, 0).astype(sums.dtype)
  limit = settings.clip_norm
  if limit is not None:
    norm = jnp.sqrt(jnp.sum(jnp.where(keep > 0, sums, 0)))
    keep = keep * jnp.where(norm > limit, limit / norm, 1)
  return keep[:, None, None]


def corrected_decay(decay, count, dtype):
  """b (1 - b^(t-1)) / (1 - b^t), accurate where b^t is close to one."""
  decay = jnp.asarray(decay, dtype)
  count = count.astype(dtype)
  log = jnp.log(jnp.maximum(decay, jnp.finfo(dtype).tiny))
  return decay * jnp.expm1((count - 1) * log) / jnp.expm1(count * log)


def _lost_trace(old, carried):
  lost = jnp.trace(old - carried, axis1=1, axis2=2)
  return jnp.maximum(lost, 0)


def _lost_eigenvalue(old, carried, method):
  """The largest loss of an eigenvalue, limited to the loss of the trace."""
  values, _ = linalg.eigh(jnp.concatenate([old, carried]), method)
  before, after = jnp.split(jnp.sort(values, axis=1), 2)
  largest = jnp.max(before - after, axis=1)
  total = jnp.sum(before - after, axis=1)
  return jnp.maximum(jnp.minimum(largest, total), 0)
