"""One step of LoRA-RITE by Gram matrices, shared by both of its forms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.pairs import PairMatrices
from lora_opt.transforms._factors import (
  Factors,
  hold_weak_directions,
  through_bases,
)
from lora_opt.transforms._moments import MomentSettings, update_moments
from lora_opt.transforms._rates import ScalarOrSchedule, rate_at


class Settings(NamedTuple):
  """The settings that both forms share."""

  moments: MomentSettings
  cap_rms: float | None
  lora_scale: float
  width_scaling: bool
  max_relative_step: float | None
  learning_rate: ScalarOrSchedule
  mu_dtype: Any

  def rate(self, count):
    return rate_at(self.learning_rate, count)


class Advance(NamedTuple):
  """The result of one step: the new momentum, and how to scale and turn it."""

  mu: list[jax.Array]
  scale: jax.Array  # (total,)
  turns: jax.Array | None  # (total, r, r), the identity for every B
  small: dict[str, Any]  # the r x r part of the state
  taken: jax.Array  # (total,): whether the step of this factor happens

  def steps(self, factors: Factors) -> list[jax.Array]:
    """The step of each factor, before the learning rate."""
    if self.turns is None:
      return factors.scaled(self.mu, self.scale)
    half = len(self.mu) // 2
    turned = factors.products(self.mu, self.turns * self.scale[:, None, None])
    # The entries of B in `turned` are unused, so they are never computed.
    return turned[:half] + factors.scaled(self.mu, self.scale)[half:]


def init_small(params):
  def each(make):
    return {name: PairMatrices(*map(make, p)) for name, p in params.items()}

  def matrices(x):
    return jnp.zeros((x.shape[0], x.shape[2], x.shape[2]), x.dtype)

  def numbers(x):
    return jnp.zeros((x.shape[0],), x.dtype)

  return {
    'inverses': each(matrices),
    'nu': each(matrices),
    'escaped': each(numbers),
  }


def advance(
  settings, factors, gradients, values, state, old_grams, old, finite, report
):
  """Computes M and V of the next step from Gram matrices.

  With C = R^T R the Gram matrix of the other factor, the unmagnified gradient
  g = G R^-1 and the bases U = F R^-1 are never formed:

    g^T g = R^-T (G^T G) R^-1,     U_old^T U = R_old^-T (F_old^T F) R^-1,
    M R^-T = (M_old R_old^-T) (F_old^T U) R^-T + G R^-1 V^(-1/2) R^-T.

  Args:
    settings: `Settings`.
    factors: the order of the factors in the following arguments.
    gradients: list of (batch, dim, rank), or of (batch, rank, dim) where
      `factors.wide` is true.
    values: F, in the same form.
    state: the state of either form.
    old_grams: function from the packed Gram matrices of the factors to
      F_old^T F, packed.
    old: function that returns F_old of each factor; used only if Gram matrices
      are too coarse.
    finite: (), whether the gradients are finite. If not, momentum and r x r
      state do not change. None: they count as finite; if there is a report, it
      is found from their squares. The momentum and r x r state of a pair whose
      r x r matrices are not finite do not change either, and its step is NaN.
    report: receives whether the gradients and the step are finite; None: no
      report.

  Returns:
    `Advance`.
  """
  matmul = linalg.matmul
  bases = through_bases(factors, values, gradients, old_grams, old)
  # Each factor works in the basis of its partner.
  inverse, cross = factors.swap(bases.inverses), factors.swap(bases.cross)
  count = optax.safe_increment(state.count)
  moments = update_moments(
    settings.moments,
    bases.squares,
    matmul(cross.mT, factors.swap(factors.pack(state.inverses))),
    factors.pack(state.nu),
    factors.pack(state.escaped),
    count,
    factors.repeat_dims(),
    factors.repeat_ranks(),
    factors.method,
  )
  decay = moments.decay
  # Carries M from the old coordinates of the partner to the new ones.
  carry = matmul(decay * cross, inverse.mT)
  take = matmul((1 - decay) * matmul(inverse, moments.root), inverse.mT)
  if report is not None:
    finite = report.gradients = jnp.isfinite(bases.size)
  old_mu = [
    m.astype(g.dtype)
    for m, g in zip(factors.flatten(state.mu), gradients, strict=True)
  ]
  usable = _pairs_are_finite(factors, bases.squares, carry, take, moments.nu)
  taken = usable if finite is None else usable & finite
  if report is not None:
    report.updates = jnp.all(usable)
  # Where no step is taken, M is multiplied by I and nothing is added, which
  # keeps it. Selecting between new and old would read the old momentum again.
  eye = jnp.eye(carry.shape[-1], dtype=carry.dtype)[None]
  carry = jnp.where(taken[:, None, None], carry, eye)
  mu = [
    carried + jnp.where(here[:, None, None], new, 0)
    for carried, new, here in zip(
      factors.products(old_mu, carry),
      factors.products(gradients, take),
      factors.packing.unpack(taken),
      strict=True,
    )
  ]
  scale = _sizes_of_steps(settings, factors, bases.grams.dtype)
  turns = _turns(settings, factors, bases, scale, state.count, moments.root)
  if settings.cap_rms is not None:
    scale = scale * _cap(settings.cap_rms, factors, mu, bases.grams)
  scale = jnp.where(usable, scale, jnp.nan)
  new = {
    'inverses': factors.swap(inverse),
    'nu': moments.nu,
    'escaped': moments.escaped,
  }
  small = kept_unless(taken, factors, new, state)
  if finite is not None:
    count = jnp.where(finite, count, state.count)
  return Advance(mu, scale, turns, {'count': count, **small}, taken)


def _pairs_are_finite(factors, *matrices):
  """Whether a pair is finite, with one entry for each factor, (total,)."""
  sums = [jnp.sum(x, axis=(1, 2)) for x in matrices]
  finite = jnp.all(jnp.isfinite(jnp.stack(sums)), axis=0)
  both = jnp.all(jnp.stack(factors.halves(finite)), axis=0)
  return jnp.concatenate([both, both])


def kept_unless(taken, factors, new, state):
  """Unpacks {part: packed}, with the old state where no step is taken."""
  out = {}
  for name, x in new.items():
    here = taken if x.ndim == 1 else taken[:, None, None]
    old = factors.pack(getattr(state, name))
    out[name] = factors.unpack(jnp.where(here, x, old))
  return out


def _sizes_of_steps(settings, factors, dtype):
  """The number that scales each M, before the learning rate, (total,)."""
  scale = jnp.full(sum(factors.packing.counts), 1 / settings.lora_scale, dtype)
  if settings.width_scaling:
    own = factors.repeat_dims().astype(dtype)
    fan_in, fan_out = factors.halves(own)
    target = jnp.tile(jnp.sqrt(fan_out / fan_in), 2)
    norm = jnp.sqrt(own) if settings.moments.mean_square else 1
    scale = scale * target / norm
  return scale


def _turns(settings, factors, bases, scale, count, root):
  """R^T W R^-T: the damping of `hold_weak_directions` for mu = M R^-T."""
  if settings.max_relative_step is None:
    return None
  sizes = jnp.asarray(settings.rate(count), scale.dtype) * scale
  if settings.moments.mean_square:
    # Singular values of M are about sqrt(m) here, and about one otherwise.
    sizes = sizes * jnp.sqrt(factors.repeat_dims().astype(scale.dtype))
  sizes = sizes / (2 * settings.max_relative_step)
  held = hold_weak_directions(factors, bases, sizes, last=root)
  inverse, grams = factors.swap(bases.inverses), factors.swap(bases.grams)
  matmul = linalg.matmul
  return matmul(matmul(matmul(grams, inverse), held), inverse.mT)


def _cap(cap_rms, factors, mu, grams):
  """The number that scales the root mean square of each M to `cap_rms`."""
  squared = jnp.sum(factors.grams(mu) * factors.swap(grams), axis=(1, 2))
  norms = jnp.sqrt(jnp.maximum(squared, 0))
  sizes = factors.repeat_dims() * factors.repeat_ranks()
  allowed = cap_rms * jnp.sqrt(sizes.astype(norms.dtype))
  too_long = norms > allowed
  return jnp.where(too_long, allowed / jnp.where(too_long, norms, 1), 1)
