"""Adam's direction in float32, which can skip a step in place."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_ROOT_OF_MAX = float(jnp.finfo(jnp.float32).max) ** 0.5


class ScaleByAdamState(optax.ScaleByAdamState):
  """State of `scale_by_adam`: count, and mu and nu in float32 or wider."""

  __slots__ = ()


def scale_by_adam(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`optax.scale_by_adam`, for every float dtype and inside `skip_nonfinite`.

  It adds three things. First, moments are float32 or wider, whatever the dtype
  of the gradients: in float16 the square of 1e-4, and eps, are zero. Second,
  there is an extra argument `finite`, which `skip_nonfinite` passes. Where it
  is False, the gradients count as zero and both decays as one, so arithmetic
  alone keeps the moments. Selecting between old and new moments afterwards
  would keep both in memory, which doubles the time of the step on CPU. Third,
  where a moment would overflow, it keeps its value and the update is NaN, for
  `skip_nonfinite` to handle.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    mu_dtype: dtype of the first moment; default float32 or wider.

  Returns:
    A transformation. Updates have the dtype of the gradients.

  >>> tx = scale_by_adam()
  >>> x = jnp.ones(1, jnp.float16)
  >>> update, state = tx.update(1e-4 * x, tx.init(x))
  >>> print(update, state.nu.dtype)
  [1.] float32
  """

  def init(params):
    def zeros(dtype):
      return jax.tree.map(
        lambda x: jnp.zeros_like(x, dtype or _wide(x.dtype)), params
      )

    return ScaleByAdamState(
      jnp.zeros((), jnp.int32), zeros(mu_dtype), zeros(None)
    )

  def update(updates, state, params=None, *, finite=None, **extra_args):
    del params, extra_args
    wide = jax.tree.map(lambda g: g.astype(_wide(g.dtype)), updates)
    count, decay1, decay2 = optax.safe_increment(state.count), b1, b2
    if finite is not None:
      count = jnp.where(finite, count, state.count)
      wide = jax.tree.map(lambda g: jnp.where(finite, g, 0), wide)
      decay1, decay2 = jnp.where(finite, b1, 1.0), jnp.where(finite, b2, 1.0)
    # A new moment depends on the gradient and its own old value alone, and the
    # direction on new moments. Otherwise XLA copies the old ones beforehand.
    mu = optax.tree.update_moment(wide, state.mu, decay1, 1)
    nu = optax.tree.update_moment_per_elem_norm(wide, state.nu, decay2, 2)
    square_fits = fits = jax.tree.map(lambda g: jnp.isfinite(g * g), wide)
    if mu_dtype is not None and jnp.finfo(mu_dtype).max < _ROOT_OF_MAX:
      # Else the mean of numbers whose squares fit cannot overflow.
      fits = jax.tree.map(
        lambda fits, m: fits & jnp.isfinite(m.astype(mu_dtype)), fits, mu
      )
    mu = jax.tree.map(jnp.where, fits, mu, state.mu)
    nu = jax.tree.map(
      lambda fits, new, old: jnp.where(fits & jnp.isfinite(new), new, old),
      square_fits,
      nu,
      state.nu,
    )
    mean = optax.tree.bias_correction(mu, decay1, count)
    square = optax.tree.bias_correction(nu, decay2, count)

    def step(m, v, g, fits):
      # 0 / 0, which occurs with eps = 0, counts as zero.
      u = jnp.where(m == 0, 0, m / (jnp.sqrt(v) + eps))
      return jnp.where(fits, u, jnp.nan).astype(g.dtype)

    return (
      jax.tree.map(step, mean, square, updates, fits),
      ScaleByAdamState(count, optax.tree.cast(mu, mu_dtype), nu),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _wide(dtype):
  return jnp.promote_types(dtype, jnp.float32)
