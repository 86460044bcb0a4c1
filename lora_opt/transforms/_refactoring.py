"""RefLoRA: gradients as the best factorisation of A B^T would see them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.pairs import LoraPair


class PreconditionByRefactoringState(NamedTuple):
  """State of `precondition_by_refactoring`."""

  count: jax.Array  # () int32: steps taken


def precondition_by_refactoring(
  *, warmup_steps: int = 0, every: int = 1, blend_steps: int = 0
) -> optax.GradientTransformation:
  """G_A S^-1 and G_B S, with S = (A^T A)^-1 # (B^T B).

  # is the matrix geometric mean. With P P^T = S the pair (A P, B P^-T) is
  balanced, (A P)^T A P = (B P^-T)^T B P^-T, and a plain gradient step of that
  pair moves delta_w as this one does. Directions in which A B^T is (still)
  zero are treated as in `linalg.geometric_mean_pair`: at B = 0 the
  gradients pass unchanged, and nothing freezes.

  Args:
    warmup_steps: so many steps pass unchanged.
    every: then one step in so many is preconditioned, as in the authors' code;
      the others pass unchanged.
    blend_steps: after the warm-up, go from I to the preconditioner linearly
      in so many steps. The gradients jump by up to S^-1 otherwise, while a
      following Adam has second moments of the old ones.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Zhang et al., RefLoRA, arXiv 2505.18877.
  """

  def init(params):
    del params
    return PreconditionByRefactoringState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    grams, treedef = jax.tree.flatten(
      {name: LoraPair(*map(linalg.gram, p)) for name, p in params.items()}
    )
    # Leaves come A, B, A, B: both halves of the batch in site order.
    packing = linalg.Packing.of(grams[::2])
    s, s_inverse = linalg.geometric_mean_pair(
      packing.pack(grams[::2]), packing.pack(grams[1::2])
    )
    weight = _weight(state.count, warmup_steps, every, blend_steps, s.dtype)
    eye = jnp.eye(s.shape[-1], dtype=s.dtype)[None]
    for_a = packing.unpack(weight * s_inverse + (1 - weight) * eye)
    for_b = packing.unpack(weight * s + (1 - weight) * eye)
    factors = [x for pair in zip(for_a, for_b, strict=True) for x in pair]
    new = jax.tree.map(linalg.matmul, updates, treedef.unflatten(factors))
    count = optax.safe_increment(state.count)
    return new, PreconditionByRefactoringState(count)

  return optax.GradientTransformation(init, update)


def _is_due(count, warmup_steps, every):
  since = count - warmup_steps
  return (since >= 0) & (since % every == 0)


def _weight(count, warmup_steps, every, blend_steps, dtype):
  """How much of the preconditioner this step takes, 0 to 1."""
  since = (count - warmup_steps + 1).astype(dtype)
  steps = jnp.maximum(blend_steps, 1).astype(dtype)
  blend = jnp.clip(since / steps, 0, 1)
  return jnp.where(_is_due(count, warmup_steps, every), blend, 0)


class RefactorByNormsState(NamedTuple):
  """State of `refactor_by_norms`."""

  count: jax.Array  # () int32: steps taken
  inner_state: Any  # with Adam moments in the current scaling


def refactor_by_norms(
  inner: optax.GradientTransformation,
  *,
  warmup_steps: int = 0,
  every: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """After a step of `inner`, gives both factors the same norm, moments too.

  With s = |B| / |A| the pair becomes (A sqrt(s), B / sqrt(s)): the same
  delta_w. What an Adam (or a momentum) in `inner` knows of gradients is
  rescaled with them: mu_A / sqrt(s) and nu_A / s, and the inverse for B. The
  start is rescaled before the first step. Where a factor is zero there is no
  s, and the pair is left alone.

  Args:
    inner: a complete optimizer over pairs, learning rate included.
    warmup_steps: no rescaling before so many steps.
    every: steps from one rescaling to the next.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Zhang et al., RefLoRA-S, arXiv 2505.18877.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return RefactorByNormsState(jnp.zeros((), jnp.int32), inner.init(params))

  def update(updates, state, params=None, **extra_args):
    count = optax.safe_increment(state.count)
    # The gradient of the rescaled start follows from that of the given one.
    first = _is_due(state.count, warmup_steps, every) & (state.count == 0)
    roots = _roots(params, first)
    factors = _rescale(params, roots, 1)
    steps, inner_state = inner.update(
      _rescale(updates, roots, -1), state.inner_state, factors, **extra_args
    )
    factors = jax.tree.map(jnp.add, factors, steps)
    roots = _roots(factors, _is_due(count, warmup_steps, every))
    factors = _rescale(factors, roots, 1)
    return (
      jax.tree.map(jnp.subtract, factors, params),
      RefactorByNormsState(count, _transport(inner_state, roots)),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _roots(params, due):
  """{name: sqrt(s) (batch, 1, 1)}, one where nothing is to be done."""

  def each(pair):
    a, b = (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) for x in pair)
    usable = due & (a > 0) & (b > 0)
    ratio = jnp.where(usable, b, 1) / jnp.where(usable, a, 1)
    return jnp.sqrt(ratio)

  return {name: each(pair) for name, pair in params.items()}


def _rescale(pairs, roots, power: int):
  """A times sqrt(s)^power, B times its inverse, in their own dtype."""

  def each(x, factor):
    return (x.astype(factor.dtype) * factor).astype(x.dtype)

  return {
    name: LoraPair(
      each(pair.a, roots[name] ** power), each(pair.b, roots[name] ** -power)
    )
    for name, pair in pairs.items()
  }


def _transport(state, roots):
  """Rescales every Adam moment and momentum found in an optimizer state."""

  def is_moments(x):
    return isinstance(x, optax.ScaleByAdamState | optax.TraceState)

  def each(x):
    if isinstance(x, optax.ScaleByAdamState):
      return x._replace(
        mu=_rescale(x.mu, roots, -1), nu=_rescale(x.nu, roots, -2)
      )
    if isinstance(x, optax.TraceState):
      return x._replace(trace=_rescale(x.trace, roots, -1))
    return x

  return jax.tree.map(each, state, is_leaf=is_moments)
