"""Transformations of optax, applied to every matrix of every pair."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType


def scale_by_trust_ratio_per_matrix() -> optax.GradientTransformation:
  """LAMB's trust ratio |F| / |update|, for each layer of a stack separately.

  `optax.scale_by_trust_ratio` would treat scanned layers as one matrix. Where
  a norm is zero, like that of B at the start, the ratio is one.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    You et al., LAMB, arXiv 1904.00962.
  """
  inner = optax.scale_by_trust_ratio()

  def one(update, param):
    return inner.update(update, inner.init(param), param)[0]

  return optax.stateless(
    lambda updates, params: jax.tree.map(jax.vmap(one), updates, params)
  )


def scale_by_muon_per_matrix(
  b1: float = 0.95, *, nesterov: bool = True, mu_dtype: Any = None
) -> optax.GradientTransformation:
  """`optax.contrib.scale_by_muon` on each factor, with steps of RMS 0.2.

  All singular values of a factor's step are about one; the step is multiplied
  by 0.2 sqrt(dim), which gives it the root mean square that is usual for
  Adam, so that learning rates are comparable.

  Args:
    b1: decay of the momentum.
    nesterov: Nesterov momentum.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Jordan et al., Muon, 2024. Liu et al., Muon is Scalable for LLM Training,
    arXiv 2502.16982.
  """
  numbers = optax.contrib.MuonDimensionNumbers(1, 2)
  orthogonalize = optax.contrib.scale_by_muon(
    beta=b1,
    nesterov=nesterov,
    mu_dtype=mu_dtype,
    weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: numbers, tree),
  )

  def scale(updates, params):
    del params
    return jax.tree.map(
      lambda x: jnp.asarray(0.2 * max(x.shape[1:]) ** 0.5, x.dtype) * x,
      updates,
    )

  orthogonalize = optax.GradientTransformation(
    orthogonalize.init, _on_automatic_axes(orthogonalize.update)
  )
  return optax.chain(orthogonalize, optax.stateless(scale))


def _on_automatic_axes(update):
  """Wraps an update of optax, which gives no sharding for its products."""

  def wrapped(updates, state, params=None):
    shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
    meshes = [s.mesh for s in jax.tree.leaves(shardings)]
    if not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
      return update(updates, state, params)
    automatic = jax.sharding.auto_axes(update, out_sharding=shardings)
    return automatic(updates, state, params)

  return wrapped
