"""LoRA-RITE: an adaptive step that no refactoring of A B^T can change."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.transforms._factors import Factors
from lora_opt.transforms._lora_rite_step import (
  Settings,
  advance,
  init_small,
  kept_unless,
)
from lora_opt.transforms._moments import MomentSettings
from lora_opt.transforms._rates import ScalarOrSchedule, raw_rate_at


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
  """The LoRA-RITE direction, over pairs; `lora_opt.lora_rite` has the maths.

  The state keeps the factors of the last step, so other parts of a chain may
  move the parameters in between. Everything is computed from Gram matrices, so
  clipping and skipping need no pass over a gradient. A gradient whose square
  overflows counts as zero for its factor.

  Args:
    b1: decay of the momentum.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    clip_norm: upper limit of the global norm of the unmagnified gradients over
      all pairs. (It is invariant, unlike the norm of the raw gradients.) None:
      no clipping.
    skip_rms: if the unmagnified gradient of a factor has a larger root mean
      square than this, it is taken as zero. None: never. (The authors' default
      is 1.)
    cap_rms: upper limit of the root mean square of a factor's M. None: no
      limit.
    escaped_mass: rule for d, the part of V that the change of basis loses. It
      is added to V as rho I, with rho <- b2' (rho + d). 'eigenvalues' is the
      paper's rule:
      d = min(max_i [lambda_i(V) - lambda_i(P V P^T)]_+, d_trace) with
      d_trace = [tr V - tr P V P^T]_+. 'trace': d = d_trace, an upper bound
      that needs no eigenvalues. None, the default of the authors' code: no
      rho. (The paper does not multiply by b2'.)
    rtol: a direction in which the root of V is smaller than this fraction of
      its largest counts as dead, and nothing is taken in there. Otherwise the
      division by V would turn rounding errors and vanishing directions into
      steps as large as all others.
    mean_square: divide g^T g by the dimension m, as the authors' code does.
      False is the paper's formula, whose learning rate is sqrt(m) times
      larger.
    lora_scale: the scale s in W + s A B^T. Steps are divided by it, and eps,
      clip_norm and skip_rms refer to gradients of W, which are s times smaller
      than those of A B^T. So the path of s A B^T is the same for every s.
    width_scaling: steps are multiplied by sqrt(fan_out / fan_in) and, with
      `mean_square`, divided by sqrt(m). The singular values of a step of
      delta_w are then of the size of lr sqrt(fan_out / fan_in) for every width,
      which keeps its effect on the features the same.
    max_relative_step: largest relative change of A in one step. The step is
      damped in directions in which A B^T is so weak that the step would change
      A by more than this fraction. None: no damping. See
      `hold_weak_directions`.
    learning_rate: the learning rate that is applied later in the chain. Here
      it is used only for `max_relative_step`, not applied.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Yen et al., LoRA Done RITE, arXiv 2410.20625.
  """
  settings = Settings(
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
      **init_small(params),
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
    step = advance(
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
  weight_decay: ScalarOrSchedule = 0.0,
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
  """`scale_by_lora_rite` with decay and learning rate, and half the state.

  The factors of the last step are not kept but computed from the momentum,
  which is possible only because nothing else moves them. So this must be the
  whole optimizer: a chain or a wrapper that changes its updates, or moves the
  parameters in another way (averaging, look-ahead, schedule-free), makes the
  change of basis wrong.

  Args:
    learning_rate: a float or a schedule.
    b1: as in `scale_by_lora_rite`.
    b2: as in `scale_by_lora_rite`.
    eps: as in `scale_by_lora_rite`.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate.
    clip_norm: as in `scale_by_lora_rite`.
    skip_rms: as in `scale_by_lora_rite`.
    cap_rms: as in `scale_by_lora_rite`.
    escaped_mass: as in `scale_by_lora_rite`.
    rtol: as in `scale_by_lora_rite`.
    mean_square: as in `scale_by_lora_rite`.
    lora_scale: as in `scale_by_lora_rite`.
    width_scaling: as in `scale_by_lora_rite`.
    max_relative_step: as in `scale_by_lora_rite`.
    mu_dtype: as in `scale_by_lora_rite`.

  Returns:
    A transformation over pairs, for `on_lora_pairs`; its updates are final.
  """
  settings = Settings(
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
    small = init_small(params)
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

    step = advance(
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
    decay = rate * raw_rate_at(weight_decay, state.count)
    # A decay of about one leaves too little of the factors to compute the last
    # ones from. These count as zero then, and V and M start anew.
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
      **kept_unless(step.taken, factors, new, state),
      **step.small,
    )

  return optax.GradientTransformationExtraArgs(init, update)


def rebalance_norms() -> optax.GradientTransformationExtraArgs:
  """After the step, gives both factors the same Frobenius norm.

  A <- A sqrt(|B| / |A|) and B <- B sqrt(|A| / |B|), which keeps delta_w. It
  belongs at the end of a chain, after the learning rate.

  Returns:
    A transformation over pairs.
  """

  def update(updates, params):
    def each(pair, step):
      new = jax.tree.map(jnp.add, pair, step)
      # 1e-6, as in the authors' code, avoids a division by zero.
      a, b = (
        jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-6 for x in new
      )
      ratio = jnp.sqrt(a * b)
      return type(pair)(
        new.a * (ratio / a) - pair.a, new.b * (ratio / b) - pair.b
      )

    return {name: each(params[name], step) for name, step in updates.items()}

  return optax.with_extra_args_support(optax.stateless(update))
