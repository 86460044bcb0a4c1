"""LoRA-RITE: an adaptive step that no refactoring of A B^T can change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.pairs import LoraPair, PairMatrices
from lora_opt.transforms._moments import MomentSettings, update_moments

ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]


class ScaleByLoraRiteState(NamedTuple):
  """State of `scale_by_lora_rite`."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: M R^-T, the momentum as a step of the factors
  previous: Any  # tree of LoraPair: the factors at the last step
  inverses: Any  # {name: PairMatrices (batch, rank, rank)}: their R^-1
  nu: Any  # {name: PairMatrices (batch, rank, rank)}: V
  escaped: Any  # {name: PairMatrices (batch,)}: rho
  norms: Any  # {name: PairMatrices (batch,)}: |M| is no larger


class StepByLoraRiteState(NamedTuple):
  """State of `step_by_lora_rite`: half of Adam's."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: M R^-T, the momentum as a step of the factors
  # The factors at the last step are kept * factors + moved * mu.
  kept: Any  # {name: PairMatrices (batch,)}
  moved: Any  # {name: PairMatrices (batch,)}
  inverses: Any  # {name: PairMatrices (batch, rank, rank)}: their R^-1
  nu: Any  # {name: PairMatrices (batch, rank, rank)}: V
  escaped: Any  # {name: PairMatrices (batch,)}: rho
  norms: Any  # {name: PairMatrices (batch,)}: |M| is no larger


class _Settings(NamedTuple):
  """All that both forms share."""

  moments: MomentSettings
  cap_rms: float | None
  lora_scale: float
  max_relative_step: float | None
  learning_rate: ScalarOrSchedule
  mu_dtype: Any

  def rate(self, count):
    lr = self.learning_rate
    return lr(count) if callable(lr) else lr


class _Lists(NamedTuple):
  """Every factor of every pair in a list: A of each pair, then B of each."""

  names: tuple[str, ...]
  packing: linalg.Packing
  dims: tuple[int, ...]
  wide: tuple[bool, ...]  # which are (batch, rank, dim), as their leaves

  @classmethod
  def of(cls, pairs, transposed):
    factors = [pairs[name][field] for field in (0, 1) for name in pairs]
    wide = [False] * len(factors)
    if transposed is not None:
      wide = [transposed[name][field] for field in (0, 1) for name in pairs]
    shapes = [
      (batch, n, m) if w else (batch, m, n)
      for (batch, m, n), w in zip((x.shape for x in factors), wide, strict=True)
    ]
    counts, dims, ranks = zip(*shapes, strict=True)
    return cls(tuple(pairs), linalg.Packing(counts, ranks), dims, tuple(wide))

  def grams(self, xs, ys=None) -> jax.Array:
    """x^T y of each factor-sized array, packed."""
    ys = xs if ys is None else ys
    return self.packing.pack(
      [
        linalg.gram(x, y, wide=w)
        for x, y, w in zip(xs, ys, self.wide, strict=True)
      ]
    )

  def products(self, xs, packed) -> list[jax.Array]:
    """Each factor-sized array times its r x r matrix."""
    return [
      linalg.matmul(x, t, wide=w)
      for x, t, w in zip(
        xs, self.packing.unpack(packed), self.wide, strict=True
      )
    ]

  def tall(self, xs) -> list[jax.Array]:
    return [x.mT if w else x for x, w in zip(xs, self.wide, strict=True)]

  def flatten(self, pairs):
    return [pairs[name][field] for field in (0, 1) for name in self.names]

  def factors(self, xs) -> dict[str, LoraPair]:
    half = len(self.names)
    return {
      name: LoraPair(xs[i], xs[half + i]) for i, name in enumerate(self.names)
    }

  def pack(self, small) -> jax.Array:
    xs = self.flatten(small)
    return jnp.concatenate(xs) if xs[0].ndim == 1 else self.packing.pack(xs)

  def unpack(self, packed) -> dict[str, PairMatrices]:
    xs, half = self.packing.unpack(packed), len(self.names)
    return {
      name: PairMatrices(xs[i], xs[half + i])
      for i, name in enumerate(self.names)
    }

  def swap(self, packed) -> jax.Array:
    """What belongs to B where that of A was, and the reverse."""
    half = packed.shape[0] // 2
    return jnp.concatenate([packed[half:], packed[:half]])


class _Advance(NamedTuple):
  """One step: the new momentum, and what it is to be multiplied by."""

  mu: list[jax.Array]
  scale: jax.Array  # (total,)
  small: dict[str, Any]  # the r x r part of the state


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
    'norms': each(numbers),
  }


def _advance(
  settings, lists, gradients, factors, state, old_grams, old, finite
):
  """M and V of the next step, by Gram matrices.

  With C = R^T R the Gram matrix of the other factor, the unmagnified gradient
  g = G R^-1 and the bases U = F R^-1 are never formed:

    g^T g = R^-T (G^T G) R^-1,     U_old^T U = R_old^-T (F_old^T F) R^-1,
    M R^-T = (M_old R_old^-T) (F_old^T U) R^-T + G R^-1 V^(-1/2) R^-T.

  Args:
    settings: `_Settings`.
    lists: `_Lists` of the pairs.
    gradients: list of (batch, dim, rank), or wide as `lists` says.
    factors: the same.
    state: of either form.
    old_grams: from the packed Gram matrices of the factors, F_old^T F, packed.
    old: F_old of each factor; used only where Gram matrices are too coarse.
    finite: (), whether the gradients are; None: they are. If not, momentum
      and r x r state stay as they were.

  Returns:
    `_Advance`.
  """
  packing, matmul = lists.packing, linalg.matmul
  squares = lists.grams(gradients)
  inverse, cross, squares, grams = _bases(
    lists, gradients, factors, squares, old_grams, old
  )
  # The bases that matter to a factor are those of its partner.
  inverse, cross = lists.swap(inverse), lists.swap(cross)
  dims = packing.repeat(lists.dims)
  ranks = packing.repeat(packing.ranks)
  count = optax.safe_increment(state.count)
  moments = update_moments(
    settings.moments,
    squares,
    matmul(cross.mT, lists.swap(lists.pack(state.inverses))),
    lists.pack(state.nu),
    lists.pack(state.escaped),
    count,
    dims,
    ranks,
  )
  decay = moments.decay
  carry = decay * cross  # M from old coordinates of the partner to the new
  take = (1 - decay) * matmul(inverse, moments.root)
  old_mu = [
    m.astype(g.dtype)
    for m, g in zip(lists.flatten(state.mu), gradients, strict=True)
  ]
  mu = [
    _kept_unless(finite, carried + taken, m)
    for carried, taken, m in zip(
      lists.products(old_mu, matmul(carry, inverse.mT)),
      lists.products(gradients, matmul(take, inverse.mT)),
      old_mu,
      strict=True,
    )
  ]
  taken = jnp.sum(
    matmul(moments.root, moments.squares) * moments.root, axis=(1, 2)
  )
  norms = decay * lists.pack(state.norms) + (1 - decay) * jnp.sqrt(
    jnp.maximum(taken, 0)
  )

  def exact_norms():
    """|M| from Gram matrices of what it is made of."""
    own = lists.grams(mu)
    squared = jnp.sum(own * lists.swap(grams), axis=(1, 2))
    return jnp.sqrt(jnp.maximum(squared, 0))

  allowed = _allowed(settings, state, grams, dims * ranks, lists)
  scale = jnp.full_like(norms, 1 / settings.lora_scale)
  if allowed is not None:
    norms = jax.lax.cond(jnp.any(norms > allowed), exact_norms, lambda: norms)
    too_long = norms > allowed
    scale *= jnp.where(too_long, allowed / jnp.where(too_long, norms, 1), 1)
  small = {
    'count': count,
    'inverses': lists.unpack(lists.swap(inverse)),
    'nu': lists.unpack(moments.nu),
    'escaped': lists.unpack(moments.escaped),
    'norms': lists.unpack(norms),
  }
  small = _kept_unless(finite, small, {k: getattr(state, k) for k in small})
  return _Advance(mu, scale, small)


def _kept_unless(finite, new, old):
  """The old state where the gradients were not finite."""
  if finite is None:
    return new
  return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)


def _bases(lists, gradients, factors, squares, old_grams, old):
  """R^-1, F_old^T U and g^T g, packed, and the Gram matrices of the factors.

  From Gram matrices where every factor is well conditioned; otherwise from
  bases and unmagnified gradients, formed as arrays, since a Gram matrix has
  the square of the condition.
  """
  packing, matmul = lists.packing, linalg.matmul
  grams = lists.grams(factors)
  inverse, good = linalg.cholesky_inverses(packing, grams)

  def coarse():
    partner = lists.swap(inverse)
    return (
      inverse,
      matmul(old_grams(grams), inverse),
      matmul(matmul(partner.mT, squares), partner),
    )

  def fine():
    resolved = linalg.resolved_inverses(packing, grams, lists.tall(factors))
    bases = lists.products(factors, resolved)
    unmagnified = lists.products(gradients, lists.swap(resolved))
    return resolved, lists.grams(old(), bases), lists.grams(unmagnified)

  return *jax.lax.cond(good, coarse, fine), grams


def _allowed(settings, state, grams, sizes, lists):
  """The largest |M| (total,), or None."""
  allowed = None
  if settings.cap_rms is not None:
    allowed = settings.cap_rms * jnp.sqrt(sizes.astype(grams.dtype))
  if settings.max_relative_step is not None:
    product = jnp.sum(grams * lists.swap(grams).mT, axis=(1, 2))
    rate = settings.rate(state.count) / settings.lora_scale
    limit = settings.max_relative_step * jnp.sqrt(jnp.maximum(product, 0))
    limit = (limit / rate).astype(grams.dtype)
    half = limit.shape[0] // 2
    limit = jnp.where(jnp.arange(2 * half) < half, limit, jnp.inf)
    allowed = limit if allowed is None else jnp.minimum(allowed, limit)
  return allowed


def scale_by_lora_rite(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  clip_norm: float | None = 1.0,
  skip_rms: float | None = None,
  cap_rms: float | None = None,
  escaped_mass: bool = False,
  mean_square: bool = True,
  lora_scale: float = 1.0,
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
    escaped_mass: whether to add rho <- b2' (rho + d) to V, with
      d = min(max_i [lambda_i(V) - lambda_i(P V P^T)]_+, [tr V - tr P V P^T]_+)
      what the change of basis lost of V. The paper always does (and does not
      multiply by b2'), the authors' code by default does not.
    mean_square: divide g^T g by the dimension m as the authors' code does;
      False is the paper's formula, whose learning rate is sqrt(m) times
      larger.
    lora_scale: s of W + s A B^T; steps are divided by it, so that a learning
      rate keeps its meaning for every alpha and rank.
    max_relative_step: a step of A is scaled down to |lr M_A| <= this part of
      |A B^T|, as measured on delta_w; None: any.
    learning_rate: the one applied later in the chain; used only for
      `max_relative_step`, not applied.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Yen et al., LoRA Done RITE, arXiv 2410.20625.
  """
  settings = _Settings(
    MomentSettings(b1, b2, eps, clip_norm, skip_rms, escaped_mass, mean_square),
    cap_rms,
    lora_scale,
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
    transposed=None,
    **extra_args,
  ):
    del extra_args
    lists = _Lists.of(params, transposed)
    factors, old = lists.flatten(params), lists.flatten(state.previous)

    def old_grams(grams):
      del grams
      return lists.grams(old, factors)

    gradients = lists.flatten(updates)
    step = _advance(
      settings,
      lists,
      gradients,
      factors,
      state,
      old_grams,
      lambda: old,
      finite,
    )
    scales = lists.packing.unpack(step.scale)
    steps = [m * c[:, None, None] for m, c in zip(step.mu, scales, strict=True)]
    return lists.factors(steps), ScaleByLoraRiteState(
      mu=lists.factors([m.astype(mu_dtype or m.dtype) for m in step.mu]),
      previous=_kept_unless(finite, params, state.previous),
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
  escaped_mass: bool = False,
  mean_square: bool = True,
  lora_scale: float = 1.0,
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
    mean_square: the same.
    lora_scale: the same.
    max_relative_step: the same.
    mu_dtype: the same.

  Returns:
    A transformation over pairs, for `on_lora_pairs`; its updates are final.
  """
  settings = _Settings(
    MomentSettings(b1, b2, eps, clip_norm, skip_rms, escaped_mass, mean_square),
    cap_rms,
    lora_scale,
    max_relative_step,
    learning_rate,
    mu_dtype,
  )

  def init(params):
    numbers = _init_small(params)['norms']
    return StepByLoraRiteState(
      count=jnp.zeros((), jnp.int32),
      mu=jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params),
      kept=jax.tree.map(jnp.ones_like, numbers),
      moved=jax.tree.map(jnp.zeros_like, numbers),
      **_init_small(params),
    )

  def update(
    updates,
    state,
    params=None,
    *,
    finite=None,
    transposed=None,
    **extra_args,
  ):
    del extra_args
    lists = _Lists.of(params, transposed)
    factors, mu = lists.flatten(params), lists.flatten(state.mu)
    mu = [m.astype(x.dtype) for m, x in zip(mu, factors, strict=True)]
    kept, moved = lists.pack(state.kept), lists.pack(state.moved)

    def old_grams(grams):
      cross = lists.grams(mu, factors)
      return kept[:, None, None] * grams + moved[:, None, None] * cross

    def old_factors():
      parts = (factors, mu, *map(lists.packing.unpack, (kept, moved)))
      return [
        x * k[:, None, None] + m * d[:, None, None]
        for x, m, k, d in zip(*parts, strict=True)
      ]

    step = _advance(
      settings,
      lists,
      lists.flatten(updates),
      factors,
      state,
      old_grams,
      old_factors,
      finite,
    )
    rate = settings.rate(state.count)
    scale = (step.scale * rate).astype(step.scale.dtype)
    decay = jnp.asarray(rate * weight_decay, scale.dtype)
    steps = [
      -c[:, None, None] * m - decay * x
      for m, c, x in zip(
        step.mu, lists.packing.unpack(scale), factors, strict=True
      )
    ]
    new = {
      'kept': lists.unpack(jnp.full_like(scale, 1 / (1 - decay))),
      'moved': lists.unpack(scale / (1 - decay)),
    }
    old = {name: getattr(state, name) for name in new}
    return lists.factors(steps), StepByLoraRiteState(
      mu=lists.factors([m.astype(mu_dtype or m.dtype) for m in step.mu]),
      **_kept_unless(finite, new, old),
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
