"""Diagnoses LoRA factors, and counts lost updates and skipped steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg, pairs, transforms
from lora_opt.pairs import LoraPair


class PairDiagnostics(NamedTuple):
  """Diagnostics of one site; each of shape `batch_shape`, without units."""

  imbalance: (
    jax.Array
  )  # |A^T A - B^T B| / (|A^T A| + |B^T B|), from 0 (balanced) to 1
  condition: (
    jax.Array
  )  # largest singular value of A B^T over the smallest that is not dead
  dead_directions: jax.Array  # rank of the factors minus the rank of A B^T
  stable_rank: jax.Array  # |A B^T|_F^2 / |A B^T|_2^2: 1 to rank; 0 if B = 0
  relative_step: jax.Array  # |last change of A B^T| / |A B^T|, Frobenius
  lost_updates: jax.Array  # fraction of the last updates lost to rounding


def diagnose(
  params: Any,
  last_updates: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
) -> dict[str, PairDiagnostics]:
  """Balance, condition, dead directions, stable rank and step of each pair.

  It works on Gram matrices of r columns, so it costs about as much as a step of
  a matrix optimizer. A direction of A B^T counts as dead below the relative
  cut-off of `lora_opt.linalg`: 1e-3 of the largest singular value in float32.

  Args:
    params: parameters with LoRA pairs.
    last_updates: the updates that led to `params`, a tree like it; None leaves
      `relative_step` and `lost_updates` at zero.
    layout: where the pairs are; see `lora_opt.pairs`.

  Returns:
    {site name: `PairDiagnostics`}.

  Raises:
    ValueError: there are no valid pairs.

  >>> params = {'lora_a': jnp.eye(3)[:, :2], 'lora_b': 2 * jnp.eye(2)}
  >>> for name, number in diagnose(params)['lora']._asdict().items():
  ...   print(name, round(number.item(), 2))
  imbalance 0.6
  condition 1.0
  dead_directions 0
  stable_rank 2.0
  relative_step 0.0
  lost_updates 0.0
  """
  sites = pairs.find_sites(params, layout)
  factors = _wide_enough(pairs.extract_pairs(params, sites))
  a = [factors[s.name].a for s in sites]
  b = [factors[s.name].b for s in sites]
  gram_a, gram_b = ([linalg.gram(x) for x in side] for side in (a, b))
  packing = linalg.Packing.of(gram_a)
  gram_a, gram_b = packing.pack(gram_a), packing.pack(gram_b)
  squares = _squared_singular_values(gram_a, gram_b)
  live = linalg.alive(squares)
  largest = squares[:, -1]
  ranks = packing.repeat(packing.ranks)
  numbers = {
    'imbalance': _ratio(_norm(gram_a - gram_b), _norm(gram_a) + _norm(gram_b)),
    'condition': jnp.sqrt(
      _ratio(largest, jnp.min(jnp.where(live, squares, jnp.inf), axis=1))
    ),
    'dead_directions': ranks - jnp.sum(live, axis=1),
    'stable_rank': _ratio(jnp.sum(squares, axis=1), largest),
    'relative_step': jnp.zeros_like(largest),
    'lost_updates': jnp.zeros_like(largest),
  }
  if last_updates is not None:
    steps = _wide_enough(pairs.extract_pairs(last_updates, sites))
    moved = jnp.concatenate(
      [_moved(factors[s.name], steps[s.name]) for s in sites]
    )
    size = jnp.sqrt(jnp.sum(squares, axis=1))
    numbers['relative_step'] = _ratio(moved, size)
    numbers['lost_updates'] = _lost(params, last_updates, sites)
  numbers = {name: packing.unpack(x) for name, x in numbers.items()}
  return {
    s.name: PairDiagnostics(
      **{name: xs[i].reshape(s.batch_shape) for name, xs in numbers.items()}
    )
    for i, s in enumerate(sites)
  }


def summarize(diagnostics: dict[str, PairDiagnostics]) -> dict[str, jax.Array]:
  """Scalars for a log: maximum, total or mean over all pairs.

  >>> params = {'lora_a': jnp.eye(3)[:, :2], 'lora_b': 2 * jnp.eye(2)}
  >>> sorted(summarize(diagnose(params)))[:3]
  ['condition_max', 'dead_directions_total', 'imbalance_max']
  """
  every = PairDiagnostics(
    *(
      jnp.concatenate([x.reshape(-1) for x in xs])
      for xs in zip(*diagnostics.values(), strict=True)
    )
  )
  return {
    'imbalance_max': jnp.max(every.imbalance),
    'condition_max': jnp.max(every.condition),
    'dead_directions_total': jnp.sum(every.dead_directions),
    'stable_rank_mean': jnp.mean(every.stable_rank),
    'relative_step_mean': jnp.mean(every.relative_step),
    'relative_step_max': jnp.max(every.relative_step),
    'lost_updates_mean': jnp.mean(every.lost_updates),
  }


def lost_updates(
  params: Any, updates: Any, layout: pairs.Layouts = pairs.AUTO
) -> jax.Array:
  """The fraction of the factors' updates that is lost to rounding.

  An update below half a rounding unit leaves the parameter unchanged: below
  1/512 of its value in bfloat16, below 1/3e7 in float32. Zero updates do not
  count. If more than a few per cent are lost, a factor hardly learns what it
  should. With `lora_opt.float32_masters`, or factors in float32, none are lost.

  Args:
    params: parameters with LoRA pairs.
    updates: the updates that are, or were, added to `params`.
    layout: where the pairs are; see `lora_opt.pairs`.

  Returns:
    (), from 0 to 1; the mean over pairs.

  >>> params = {'lora_a': jnp.ones((4, 1), jnp.bfloat16),
  ...           'lora_b': jnp.zeros((1, 4), jnp.bfloat16)}
  >>> updates = jax.tree.map(lambda x: 1e-3 + 0 * x, params)
  >>> print(lost_updates(params, updates))
  0.5
  """
  sites = pairs.find_sites(params, layout)
  return jnp.mean(_lost(params, updates, sites))


class Skips(NamedTuple):
  """Numbers of steps that were skipped, wholly or in part."""

  total: jax.Array  # () int32
  consecutive: jax.Array  # () int32: since the last step that was not skipped


def skips(state: Any) -> Skips | None:
  """How many steps were skipped because of values that are not finite.

  Every recipe counts them (see `transforms.skip_nonfinite` for what counts),
  and so does `optax.apply_if_finite`. `optax.MultiSteps` does not count the
  microbatches that its `should_skip_update_fn` leaves out.

  Args:
    state: state of any optimizer, however wrapped, or a tree that contains it.

  Returns:
    The counts, the largest if several transformations count; None if none
    does.

  >>> tx = transforms.skip_nonfinite(optax.sgd(1.0))
  >>> x = jnp.ones(2)
  >>> _, state = tx.update(x * jnp.nan, tx.init(x), x)
  >>> skips(state).total.item(), skips(optax.sgd(1.0).init(x))
  (1, None)
  """
  found: list[Skips] = []

  def look(x):
    if isinstance(x, transforms.SkipNonfiniteState):
      found.append(Skips(x.skipped, x.consecutive))
    elif isinstance(x, optax.ApplyIfFiniteState):
      found.append(Skips(x.total_notfinite, x.notfinite_count))
    return False  # keep descending into the tree

  jax.tree.leaves(state, is_leaf=look)
  if not found:
    return None
  return Skips(*(jnp.max(jnp.stack(xs)) for xs in zip(*found, strict=True)))


def _lost(params, updates, sites):
  """The fraction of each pair's updates that is lost, (number of pairs,)."""
  factors = pairs.extract_pairs(params, sites)
  steps = pairs.extract_pairs(updates, sites)
  lost = []
  for s in sites:
    tried, failed = 0, 0
    for x, step in zip(factors[s.name], steps[s.name], strict=True):
      # As in `optax.apply_updates`, but always summed in float32 or wider.
      sums = (_wide_enough(x) + _wide_enough(step)).astype(x.dtype)
      moves = step != 0
      tried += jnp.sum(moves, axis=(1, 2))
      failed += jnp.sum(moves & (sums == x), axis=(1, 2))
    dtype = jnp.promote_types(factors[s.name].a.dtype, jnp.float32)
    lost.append(_ratio(failed.astype(dtype), tried.astype(dtype)))
  return jnp.concatenate(lost)


def _wide_enough(factors):
  return jax.tree.map(
    lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), factors
  )


def _squared_singular_values(gram_a, gram_b):
  """Squared singular values of A B^T, ascending.

  They are the eigenvalues of L^T (B^T B) L with L L^T = A^T A.
  """
  values, vectors = linalg.eigh(gram_a)
  half = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]
  inner = linalg.matmul(linalg.matmul(half.mT, gram_b), half)
  squares, _ = linalg.eigh(linalg.symmetrize(inner))
  return jnp.sort(jnp.maximum(squares, 0), axis=1)


def _moved(now: LoraPair, step: LoraPair):
  """|A B^T - (A - dA) (B - dB)^T| as |[dA, A - dA] [B, dB]^T|, (batch,)."""
  left = linalg.gram(jnp.concatenate([step.a, now.a - step.a], axis=-1))
  right = linalg.gram(jnp.concatenate([now.b, step.b], axis=-1))
  square = jnp.sum(left * right, axis=(1, 2))
  return jnp.sqrt(jnp.maximum(square, 0))


def _norm(x):
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2)))


def _ratio(x, y):
  """x / y, or zero where y is zero."""
  return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)
