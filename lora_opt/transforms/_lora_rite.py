"""LoRA-RITE: an adaptive step that no refactoring of A B^T can change."""

from typing import Any, Literal, NamedTuple

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


class ScaleByLoraRiteState(NamedTuple):
  """State of `scale_by_lora_rite`."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: M R^-T, the momentum as a step of the factors
  previous: Any  # tree of LoraPair: the factors at the last step
  inverses: Any  # {name: PairMatrices (batch, rank, rank)}: their R^-1
  nu: Any  # {name: PairMatrices (batch, rank, rank)}: V
  escaped: Any  # {name: PairMatrices (batch,)}: rho


class StepByLoraRiteState(NamedTuple):
  """State of `step_by_lora_rite`: half of Adam's."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: M R^-T, the momentum as a step of the factors
  # The factors at the last step are kept * factors + mu @ moved.
  kept: Any  # {name: PairMatrices (batch,)}
  moved: Any  # {name: PairMatrices (batch, rank, rank)}
  inverses: Any  # {name: PairMatrices (batch, rank, rank)}: their R^-1
  nu: Any  # {name: PairMatrices (batch, rank, rank)}: V
  escaped: Any  # {name: PairMatrices (batch,)}: rho


class _Settings(NamedTuple):
  """All that both forms share."""

  moments: MomentSettings
  cap_rms: float | None
  lora_scale: float
  width_scaling: bool
  max_relative_step: float | None
  learning_rate: ScalarOrSchedule
  mu_dtype: Any

  def rate(self, count):
    return rate_at(self.learning_rate, count)


class _Advance(NamedTuple):
  """One step: the new momentum, and what it is to be multiplied by."""

  mu: list[jax.Array]
  scale: jax.Array  # (total,)
  turns: jax.Array | None  # (total, r, r), the identity for every B
  small: dict[str, Any]  # the r x r part of the state
  taken: jax.Array  # (total,): whether the step of this factor happens

  def steps(self, factors: Factors) -> list[jax.Array]:
    """Of each factor, before the learning rate."""
    if self.turns is None:
      return factors.scaled(self.mu, self.scale)
    half = len(self.mu) // 2
    turned = factors.products(self.mu, self.turns * self.scale[:, None, None])
    # What stands for B there is never computed.
    return turned[:half] + factors.scaled(self.mu, self.scale)[half:]


def _init_small(params):
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


def _advance(
  settings, factors, gradients, values, state, old_grams, old, finite, report
):
  """M and V of the next step, by Gram matrices.

  With C = R^T R the Gram matrix of the other factor, the unmagnified gradient
  g = G R^-1 and the bases U = F R^-1 are never formed:

    g^T g = R^-T (G^T G) R^-1,     U_old^T U = R_old^-T (F_old^T F) R^-1,
    M R^-T = (M_old R_old^-T) (F_old^T U) R^-T + G R^-1 V^(-1/2) R^-T.

  Args:
    settings: `_Settings`.
    factors: the order of all that follows.
    gradients: list of (batch, dim, rank), or wide as `factors` says.
    values: F, the same.
    state: of either form.
    old_grams: from the packed Gram matrices of the factors, F_old^T F, packed.
    old: F_old of each factor; used only where Gram matrices are too coarse.
    finite: (), whether the gradients are; None: they are, unless a report is
      asked for, which says so from their squares. If not, momentum
      and r x r state stay as they were. So do those of a pair of which the
      r x r matrices are not finite; its step is NaN.

  Returns:
    `_Advance`.
  """
  matmul = linalg.matmul
  bases = through_bases(factors, values, gradients, old_grams, old)
  # The bases that matter to a factor are those of its partner.
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
  # M from old coordinates of the partner to the new.
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
  # Where nothing is taken in, M times I, and nothing more, is M: choosing
  # between new and old would read the old momentum once more.
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
  small = _kept_unless(taken, factors, new, state)
  if finite is not None:
    count = jnp.where(finite, count, state.count)
  return _Advance(mu, scale, turns, {'count': count, **small}, taken)


def _pairs_are_finite(factors, *matrices):
  """Whether all of a pair is finite, said of both factors (total,)."""
  sums = [jnp.sum(x, axis=(1, 2)) for x in matrices]
  finite = jnp.all(jnp.isfinite(jnp.stack(sums)), axis=0)
  both = jnp.all(jnp.stack(factors.halves(finite)), axis=0)
  return jnp.concatenate([both, both])


def _kept_unless(taken, factors, new, state):
  """{part: packed} as the state has it; the old where nothing is taken in."""
  out = {}
  for name, x in new.items():
    here = taken if x.ndim == 1 else taken[:, None, None]
    old = factors.pack(getattr(state, name))
    out[name] = factors.unpack(jnp.where(here, x, old))
  return out


def _sizes_of_steps(settings, factors, dtype):
  """What M is multiplied by, before the learning rate (total,)."""
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
    # Singular values of M are about sqrt(m), or else about one.
    sizes = sizes * jnp.sqrt(factors.repeat_dims().astype(scale.dtype))
  sizes = sizes / (2 * settings.max_relative_step)
  held = hold_weak_directions(factors, bases, sizes, last=root)
  inverse, grams = factors.swap(bases.inverses), factors.swap(bases.grams)
  matmul = linalg.matmul
  return matmul(matmul(matmul(grams, inverse), held), inverse.mT)


def _cap(cap_rms, factors, mu, grams):
  """What brings the root mean square of each M down to `cap_rms`."""
  squared = jnp.sum(factors.grams(mu) * factors.swap(grams), axis=(1, 2))
  norms = jnp.sqrt(jnp.maximum(squared, 0))
  sizes = factors.repeat_dims() * factors.repeat_ranks()
  allowed = cap_rms * jnp.sqrt(sizes.astype(norms.dtype))
  too_long = norms > allowed
  return jnp.where(too_long, allowed / jnp.where(too_long, norms, 1), 1)


def scale_by_lora_rite(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  clip_norm: float | None = 1.0,
  skip_rms: float | None = None,
  cap_rms: float | None = None,
  escaped_mass: Literal['trace', 'eigenvalues'] | None = 'trace',
  rtol: float = 1e-3,
  mean_square: bool = True,
  lora_scale: float = 1.0,
  width_scaling: bool = False,
  max_relative_step: float | None = None,
  learning_rate: ScalarOrSchedule = 1.0,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """The LoRA-RITE direction, over pairs: `lora_opt.lora_rite` has the maths.

  The factors of the last step are kept, so whatever else in a chain may move
  the parameters in between. Everything is asked of Gram matrices; clipping
  and skipping cost no pass over a gradient. One whose square overflows counts
  as zero for that factor.

  Args:
    b1: decay of the momentum.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    clip_norm: global norm over all pairs of the unmagnified gradients (an
      invariant, unlike that of the raw ones); None: no clipping.
    skip_rms: a factor's unmagnified gradient with a larger root mean square
      is taken as zero; None: never. (The authors' default is 1.)
    cap_rms: largest root mean square of a factor's M; None: any.
    escaped_mass: what of V the change of basis lost, d, is added to V as
      rho I, rho <- b2' (rho + d). 'eigenvalues', the paper's:
      d = min(max_i [lambda_i(V) - lambda_i(P V P^T)]_+, d_trace) with
      d_trace = [tr V - tr P V P^T]_+. 'trace': d = d_trace, an upper bound
      that needs no eigenvalues. None, the default of the authors' code: no
      rho. (The paper does not multiply by b2'.)
    rtol: a direction in which the root of V is smaller than this part of its
      largest counts as dead: it takes nothing in. Divided by V, rounding and
      vanishing directions would make steps as large as all others.
    mean_square: divide g^T g by the dimension m as the authors' code does;
      False is the paper's formula, whose learning rate is sqrt(m) times
      larger.
    lora_scale: s of W + s A B^T. Steps are divided by it, and eps, clip_norm
      and skip_rms are of gradients of W, s times smaller than those of A B^T:
      the path of s A B^T is then the same for every s.
    width_scaling: steps are multiplied by sqrt(fan_out / fan_in), and divided
      by sqrt(m) with `mean_square`: then the singular values of a step of
      delta_w are of the size of lr sqrt(fan_out / fan_in) for every width,
      which keeps its effect on the features the same.
    max_relative_step: a step of A is damped in the directions of A B^T that
      are so weak that it would change A there by more than this part; None:
      any. See `hold_weak_directions`.
    learning_rate: the one applied later in the chain; used only for
      `max_relative_step`, not applied.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Yen et al., LoRA Done RITE, arXiv 2410.20625.
  """
  settings = _Settings(
    MomentSettings(
      b1, b2, eps, clip_norm, skip_rms, escaped_mass, rtol, mean_square
    ).of_product(lora_scale),
    cap_rms,
    lora_scale,
    width_scaling,
    max_relative_step,
    learning_rate,
    mu_dtype,
  )

  def init(params):
    return ScaleByLoraRiteState(
      count=jnp.zeros((), jnp.int32),
      mu=jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params),
      previous=jax.tree.map(jnp.zeros_like, params),
      **_init_small(params),
    )

  def update(
    updates,
    state,
    params=None,
    *,
    finite=None,
    report=None,
    **extra_args,
  ):
    factors = Factors.of(params, **extra_args)
    values, old = factors.flatten(params), factors.flatten(state.previous)

    def old_grams(grams):
      del grams
      return factors.grams(old, values)

    gradients = factors.flatten(updates)
    step = _advance(
      settings,
      factors,
      gradients,
      values,
      state,
      old_grams,
      lambda: old,
      finite,
      report,
    )
    previous = [
      jnp.where(here[:, None, None], x, y)
      for x, y, here in zip(
        values, old, factors.packing.unpack(step.taken), strict=True
      )
    ]
    return factors.pairs(step.steps(factors)), ScaleByLoraRiteState(
      mu=factors.pairs([m.astype(mu_dtype or m.dtype) for m in step.mu]),
      previous=factors.pairs(previous),
      **step.small,
    )

  return optax.GradientTransformationExtraArgs(init, update)


def step_by_lora_rite(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  weight_decay: float = 0.0,
  clip_norm: float | None = 1.0,
  skip_rms: float | None = None,
  cap_rms: float | None = None,
  escaped_mass: Literal['trace', 'eigenvalues'] | None = 'trace',
  rtol: float = 1e-3,
  mean_square: bool = True,
  lora_scale: float = 1.0,
  width_scaling: bool = False,
  max_relative_step: float | None = None,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_lora_rite`, decay and learning rate in one, with half the state.

  The factors of the last step are not kept but found from the momentum, since
  nothing else moves them. So this must be the whole optimizer: a chain or a
  wrapper that changes its updates, or moves the parameters otherwise
  (averaging, look-ahead, schedule-free), makes the transport wrong.

  Args:
    learning_rate: a float or a schedule.
    b1: as in `scale_by_lora_rite`, as all that is not listed.
    b2: the same.
    eps: the same.
    weight_decay: decoupled, times the learning rate.
    clip_norm: the same.
    skip_rms: the same.
    cap_rms: the same.
    escaped_mass: the same.
    rtol: the same.
    mean_square: the same.
    lora_scale: the same.
    width_scaling: the same.
    max_relative_step: the same.
    mu_dtype: the same.

  Returns:
    A transformation over pairs, for `on_lora_pairs`; its updates are final.
  """
  settings = _Settings(
    MomentSettings(
      b1, b2, eps, clip_norm, skip_rms, escaped_mass, rtol, mean_square
    ).of_product(lora_scale),
    cap_rms,
    lora_scale,
    width_scaling,
    max_relative_step,
    learning_rate,
    mu_dtype,
  )

  def init(params):
    small = _init_small(params)
    return StepByLoraRiteState(
      count=jnp.zeros((), jnp.int32),
      mu=jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params),
      kept=jax.tree.map(jnp.ones_like, small['escaped']),
      moved=jax.tree.map(jnp.zeros_like, small['nu']),
      **small,
    )

  def update(
    updates,
    state,
    params=None,
    *,
    finite=None,
    report=None,
    **extra_args,
  ):
    factors = Factors.of(params, **extra_args)
    values, mu = factors.flatten(params), factors.flatten(state.mu)
    mu = [m.astype(x.dtype) for m, x in zip(mu, values, strict=True)]
    kept, moved = factors.pack(state.kept), factors.pack(state.moved)

    def old_grams(grams):
      cross = factors.grams(mu, values)
      return kept[:, None, None] * grams + linalg.matmul(moved.mT, cross)

    def old_factors():
      parts = factors.scaled(values, kept), factors.products(mu, moved)
      return [x + y for x, y in zip(*parts, strict=True)]

    step = _advance(
      settings,
      factors,
      factors.flatten(updates),
      values,
      state,
      old_grams,
      old_factors,
      finite,
      report,
    )
    rate = jnp.asarray(settings.rate(state.count), step.scale.dtype)
    decay = rate * weight_decay
    # Decay of about one leaves too little of the factors to find the last ones
    # from: they count as zero then, and V and M start anew.
    shrunk = 1 - decay
    rest = jnp.sqrt(jnp.finfo(shrunk.dtype).eps)
    undo = jnp.where(jnp.abs(shrunk) > rest, 1 / shrunk, 0)
    steps = [
      -rate * m - decay * x
      for m, x in zip(step.steps(factors), values, strict=True)
    ]
    turns = step.turns
    if turns is None:
      turns = jnp.eye(moved.shape[-1], dtype=moved.dtype)[None]
    new = {
      'kept': jnp.broadcast_to(undo, kept.shape),
      'moved': undo * rate * step.scale[:, None, None] * turns,
    }
    return factors.pairs(steps), StepByLoraRiteState(
      mu=factors.pairs([m.astype(mu_dtype or m.dtype) for m in step.mu]),
      **_kept_unless(step.taken, factors, new, state),
      **step.small,
    )

  return optax.GradientTransformationExtraArgs(init, update)


def rebalance_norms() -> optax.GradientTransformationExtraArgs:
  """After the step, gives both factors the same Frobenius norm.

  A <- A sqrt(|B| / |A|) and B <- B sqrt(|A| / |B|): the same delta_w. Stands
  at the end of a chain, behind the learning rate.

  Returns:
    A transformation over pairs.
  """

  def update(updates, params):
    def each(pair, step):
      new = jax.tree.map(jnp.add, pair, step)
      # 1e-6, as in the authors' code, keeps a zero factor from dividing.
      a, b = (
        jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-6 for x in new
      )
      ratio = jnp.sqrt(a * b)
      return type(pair)(
        new.a * (ratio / a) - pair.a, new.b * (ratio / b) - pair.b
      )

    return {name: each(params[name], step) for name, step in updates.items()}

  return optax.with_extra_args_support(optax.stateless(update))
