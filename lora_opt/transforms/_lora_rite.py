"""LoRA-RITE: an adaptive step that no refactoring of A B^T can change."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.pairs import PairMatrices
from lora_opt.transforms._bases import ScalarOrSchedule, in_orthonormal_bases


class ScaleByProjectedMomentsState(NamedTuple):
  """State of `scale_by_projected_moments`."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: M, momentum in the current basis
  nu: Any  # {name: PairMatrices (batch, rank, rank)}: V
  escaped: Any  # {name: PairMatrices (batch,)}: rho


def scale_by_projected_moments(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  clip_norm: float | None = None,
  skip_rms: float | None = None,
  escaped_mass: bool = False,
  mean_square: bool = True,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Adam's two moments as matrices, carried from basis to basis.

  With g the unmagnified gradient (m, r), P the basis change, and decays with
  bias correction, b' = b (1 - b^(t-1)) / (1 - b^t):

    V   <- b2' P V P^T + (1 - b2') g^T g / m
    rho <- b2' (rho + d)
    M   <- b1' M P^T + (1 - b1') g (V + rho I)^(-1/2)

  and M is the step. The inverse root is 1 / (sqrt(lambda + rho) + eps), and
  zero on dead directions (`linalg.cutoff`), so a gradient of low rank gives
  a step of low rank. d = min(max_i [lambda_i(V) - lambda_i(P V P^T)]_+,
  [tr V - tr P V P^T]_+) is what the change of basis lost of V.

  All that is asked of g, its size included, is asked of g^T g: clipping and
  skipping cost no pass over g. A gradient whose square overflows counts as
  zero for that factor.

  Args:
    b1: decay of M.
    b2: decay of V.
    eps: added to the square root.
    clip_norm: largest global norm of g over all pairs; None: any.
    skip_rms: a factor whose g has a larger root mean square takes it as zero;
      None: never.
    escaped_mass: whether to add rho; the paper always does, the authors' code
      by default does not. (The paper does not multiply it by b2'.)
    mean_square: divide by the dimension m as the authors' code does; False is
      the paper's formula, whose learning rate is sqrt(m) times larger.
    mu_dtype: dtype of M; default that of the pairs.

  Returns:
    A transformation over pairs, inside `in_orthonormal_bases`.
  """

  def init(params):
    def each(make):
      return {
        name: PairMatrices(*(make(x) for x in pair))
        for name, pair in params.items()
      }

    return ScaleByProjectedMomentsState(
      count=jnp.zeros((), jnp.int32),
      mu=jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params),
      nu=each(
        lambda x: jnp.zeros((x.shape[0], x.shape[2], x.shape[2]), x.dtype)
      ),
      escaped=each(lambda x: jnp.zeros((x.shape[0],), x.dtype)),
    )

  def update(updates, state, params=None, *, basis_change, **extra_args):
    del params, extra_args
    count = optax.safe_increment(state.count)
    gradients, treedef = jax.tree.flatten(updates)
    changes = jax.tree.leaves(basis_change)
    packing = linalg.Packing.of(changes)
    dtype = jnp.result_type(*gradients)
    decay1 = _corrected_decay(b1, count, dtype)
    decay2 = _corrected_decay(b2, count, dtype)

    # One batch of r x r matrices from here, for every factor of every pair.
    squares = packing.pack([linalg.gram(g) for g in gradients])
    dims = packing.repeat([g.shape[1] for g in gradients]).astype(dtype)
    ranks = packing.repeat(packing.ranks).astype(dtype)
    keep = _kept_part(squares, dims * ranks, clip_norm, skip_rms)
    squares = jnp.where(keep > 0, squares * jnp.square(keep), 0)
    if mean_square:
      squares = squares / dims[:, None, None]
    change = packing.pack(changes)
    old = packing.pack(jax.tree.leaves(state.nu))
    carried = linalg.symmetrize(
      linalg.matmul(linalg.matmul(change, old), change.mT)
    )
    v = linalg.symmetrize(decay2 * carried + (1 - decay2) * squares)
    escaped = jnp.concatenate(jax.tree.leaves(state.escaped))
    if escaped_mass:
      values, vectors, lost = _eigh_and_loss(v, old, carried)
      escaped = decay2 * (escaped + lost)
      values = values + escaped[:, None]
    else:
      values, vectors = linalg.eigh(v)
    live = linalg.alive(values)
    scale = 1 / (jnp.sqrt(jnp.where(live, values, 1)) + eps)
    root = keep * linalg.from_eigen(vectors, jnp.where(live, scale, 0))

    def step(g, m, change, root):
      m = linalg.matmul(m.astype(g.dtype), decay1 * change.mT)
      return m + linalg.matmul(g, (1 - decay1) * root)

    steps = [
      step(*each)
      for each in zip(
        gradients,
        jax.tree.leaves(state.mu),
        changes,
        packing.unpack(root),
        strict=True,
      )
    ]
    matrices = jax.tree.structure(state.nu)
    return treedef.unflatten(steps), ScaleByProjectedMomentsState(
      count=count,
      mu=treedef.unflatten([m.astype(mu_dtype or m.dtype) for m in steps]),
      nu=matrices.unflatten(packing.unpack(v)),
      escaped=matrices.unflatten(packing.unpack(escaped)),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _kept_part(squares, sizes, clip_norm, skip_rms):
  """The factor (total, 1, 1) that each gradient is multiplied by."""
  sums = jnp.trace(squares, axis1=1, axis2=2)
  keep = jnp.isfinite(sums)
  if skip_rms is not None:
    keep &= ~(jnp.sqrt(sums / sizes) > skip_rms)
  keep = jnp.where(keep, 1, 0).astype(sums.dtype)
  if clip_norm is not None:
    norm = jnp.sqrt(jnp.sum(jnp.where(keep > 0, sums, 0)))
    keep = keep * jnp.where(norm > clip_norm, clip_norm / norm, 1)
  return keep[:, None, None]


def _corrected_decay(decay, count, dtype):
  """b (1 - b^(t-1)) / (1 - b^t), accurate where b^t is close to one."""
  decay = jnp.asarray(decay, dtype)
  count = count.astype(dtype)
  log = jnp.log(jnp.maximum(decay, jnp.finfo(dtype).tiny))
  return decay * jnp.expm1((count - 1) * log) / jnp.expm1(count * log)


def _eigh_and_loss(v, old, carried):
  """Eigenpairs of v, and what `carried` lost of `old`: one LAPACK call."""
  values, vectors = linalg.eigh(jnp.concatenate([v, old, carried]))
  values, before, after = jnp.split(values, 3)
  largest = jnp.max(before - after, axis=1)
  total = jnp.sum(before - after, axis=1)
  lost = jnp.maximum(jnp.minimum(largest, total), 0)
  return values, jnp.split(vectors, 3)[0], lost


def limit_rms(limit: float) -> optax.GradientTransformation:
  """Scales a factor's update down to a root mean square of `limit`.

  Args:
    limit: the largest root mean square.

  Returns:
    A transformation over pairs.
  """

  def update(updates, params):
    del params

    def each(u):
      rms = jnp.sqrt(jnp.mean(jnp.square(u), axis=(1, 2), keepdims=True))
      return u / jnp.maximum(1, rms / limit)

    return jax.tree.map(each, updates)

  return optax.stateless(update)


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
  """The LoRA-RITE direction, over pairs.

  `in_orthonormal_bases` around `scale_by_projected_moments`; see
  `lora_opt.lora_rite`.

  Args:
    b1: decay of the momentum.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    clip_norm: global norm over all pairs of the unmagnified gradients (an
      invariant, unlike that of the raw ones); None: no clipping.
    skip_rms: a factor's unmagnified gradient with a larger root mean square
      is taken as zero; None: never. (The authors' default is 1.)
    cap_rms: largest root mean square of a factor's M; None: any.
    escaped_mass: see `scale_by_projected_moments`.
    mean_square: see `scale_by_projected_moments`.
    lora_scale: see `in_orthonormal_bases`.
    max_relative_step: see `in_orthonormal_bases`.
    learning_rate: only for `max_relative_step`.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.
  """
  moments = scale_by_projected_moments(
    b1,
    b2,
    eps,
    clip_norm=clip_norm,
    skip_rms=skip_rms,
    escaped_mass=escaped_mass,
    mean_square=mean_square,
    mu_dtype=mu_dtype,
  )
  if cap_rms is not None:
    moments = optax.chain(moments, limit_rms(cap_rms))
  return in_orthonormal_bases(
    moments,
    lora_scale=lora_scale,
    max_relative_step=max_relative_step,
    learning_rate=learning_rate,
  )


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
