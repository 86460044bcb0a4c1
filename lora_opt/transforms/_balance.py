"""Refactoring that transforms the factors, their gradients and moments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt import pairs as pairs_lib
from lora_opt.pairs import LoraPair
from lora_opt.transforms._altlora import ScaleByAltLoraState
from lora_opt.transforms._factors import Factors
from lora_opt.transforms._lora_rite import ScaleByLoraRiteState
from lora_opt.transforms._pairing import Pairing
from lora_opt.transforms._refactoring import is_due


class RefactorState(NamedTuple):
  """State of `refactor_by_norms` and `refactor_by_balance`."""

  count: jax.Array  # () int32: steps taken
  inner_state: Any  # with moments in the factorisation of the last step


class _Change(NamedTuple):
  """The effects of (A, B) -> (A P, B P^-T), each as a function of pairs."""

  factors: Callable[[Any], Any]
  gradients: Callable[[Any], Any]
  squares: Callable[[Any], Any]  # for elementwise squares of gradients


def refactor_by_norms(
  inner: optax.GradientTransformation,
  layout: pairs_lib.Layouts = pairs_lib.AUTO,
  *,
  warmup_steps: int = 0,
  every: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """Before a step of `inner`, rescales both factors to the same norm.

  With s = |B| / |A| the pair becomes (A sqrt(s), B / sqrt(s)), which has the
  same delta_w. The moments of an Adam (or a momentum) in `inner` are rescaled
  with the gradients: mu_A / sqrt(s) and nu_A / s, and the inverse for B. If a
  factor is zero, s is not defined and the pair is left alone.

  The papers' code rescales after the step. Rescaling before the next step gives
  the same path of delta_w, and saves a whole pass over factors and moments:
  only norms are needed beforehand, and the rescaling is fused into the step of
  `inner`.

  Args:
    inner: a complete optimizer over the tree, learning rate included. Its
      Adam moments or momenta must be those of the gradients that it receives.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`.
    warmup_steps: number of steps before the first rescaling.
    every: number of steps from one rescaling to the next.

  Returns:
    A transformation over the tree. `update` needs `params`.

  Raises:
    ValueError: if the tree has no valid pairs, or if the state of `inner`
      cannot be transformed.

  References:
    Zhang et al., RefLoRA-S, arXiv 2505.18877.
  """

  def change_of(pairing, params, due, method):
    del pairing, method
    roots = {name: _root_of_norms(pair, due) for name, pair in params.items()}

    def times(power):
      def each(pairs):
        return {
          name: LoraPair(
            pair.a * roots[name] ** power, pair.b * roots[name] ** -power
          )
          for name, pair in pairs.items()
        }

      return each

    return _Change(times(1), times(-1), times(-2))

  return _refactored(
    inner, layout, change_of, warmup_steps, every, elementwise=True
  )


def refactor_by_balance(
  inner: optax.GradientTransformation,
  layout: pairs_lib.Layouts = pairs_lib.AUTO,
  *,
  warmup_steps: int = 0,
  every: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """Before a step of `inner`, balances the factors: A^T A = B^T B.

  With S = (A^T A)^-1 # (B^T B), the geometric mean, and P = S^(1/2), the pair
  becomes (A P, B P^-T), which is balanced and has the same delta_w. Of all
  balancing changes this one turns the columns least. Gradients and momenta
  become G_A P^-T and G_B P. Adam's second moments belong to elements, not to a
  matrix. They are transformed like those of independent elements, by the
  squares of the elements of P^-T and P.

  Weak directions are balanced as far as `linalg.balancing_change` resolves
  them. A pair with a zero factor does not change. A pair whose rank is larger
  than its number of inputs or outputs only gets equal norms, as in
  `refactor_by_norms`.

  Args:
    inner: a complete optimizer over the tree, learning rate included. Its
      Adam moments or momenta must be those of the gradients that it receives.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`.
    warmup_steps: number of steps before the first balancing.
    every: number of steps from one balancing to the next.

  Returns:
    A transformation over the tree. `update` needs `params`.

  Raises:
    ValueError: if the tree has no valid pairs, or if the state of `inner`
      cannot be transformed.

  References:
    Zhang et al., RefLoRA, arXiv 2505.18877. BaLoRA, arXiv 2605.31484.
  """

  def change_of(pairing, params, due, method):
    factors = Factors.of(
      params, transposed=pairing.transposed(), matrix_method=method
    )
    grams = factors.grams(factors.flatten(params))
    p, p_inverse = linalg.balancing_change(*factors.halves(grams), method)
    # If a factor has fewer outputs or inputs than the rank, its directions turn
    # from step to step, and moments transformed with them would diverge.
    narrow = factors.repeat_ranks() > factors.repeat_dims()
    narrow = jnp.any(jnp.stack(factors.halves(narrow)), axis=0)
    norms = jnp.sqrt(jnp.trace(grams, axis1=1, axis2=2))
    root = _root_of_ratio(*factors.halves(norms))
    eye = jnp.eye(p.shape[-1], dtype=p.dtype)[None]
    p, p_inverse = (
      jnp.where(narrow[:, None, None], number[:, None, None] * eye, matrix)
      for number, matrix in ((root, p), (1 / root, p_inverse))
    )
    forth, back = (
      jnp.where(due, x, jnp.eye(x.shape[-1], dtype=x.dtype)[None])
      for x in (
        jnp.concatenate([p, p_inverse]),
        jnp.concatenate([p_inverse, p]),
      )
    )

    def times(matrices):
      def each(pairs):
        return factors.pairs(factors.products(factors.flatten(pairs), matrices))

      return each

    return _Change(times(forth), times(back), times(jnp.square(back)))

  return _refactored(inner, layout, change_of, warmup_steps, every, native=True)


def _root_of_norms(pair, due):
  """sqrt(|B| / |A|), (batch, 1, 1); one if no rescaling is due."""
  a, b = (
    jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True)) for x in pair
  )
  return jnp.where(due, _root_of_ratio(a, b), 1)


def _root_of_ratio(a, b):
  """sqrt(b / a) of two norms, clipped; one where either norm is zero."""
  usable = (a > 0) & (b > 0)
  root = jnp.sqrt(jnp.where(usable, b, 1) / jnp.where(usable, a, 1))
  return jnp.clip(root, 1 / linalg.MAX_CHANGE, linalg.MAX_CHANGE)


def _refactored(
  inner, layout, change_of, warmup_steps, every, **pairing_options
):
  """Refactors the pairs, then runs a step of `inner`."""
  inner = optax.with_extra_args_support(inner)

  def init(params):
    state = inner.init(params)
    _check_can_move(state, jax.tree.structure(params))
    return RefactorState(jnp.zeros((), jnp.int32), state)

  def update(
    updates,
    state,
    params=None,
    *,
    finite=None,
    **extra_args,
  ):
    if params is None:
      raise ValueError(
        'LoRA transformations need the parameters: call '
        'tx.update(grads, state, params).'
      )
    pairing = Pairing(
      params,
      layout,
      pairing_options.get('elementwise', False),
      pairing_options.get('native', False),
    )
    due = is_due(state.count, warmup_steps, every)
    if finite is not None:
      # If the step is skipped, the factors do not move, so the moments must not
      # be transformed.
      due &= finite
      extra_args['finite'] = finite
    method = extra_args.get('matrix_method', 'platform')
    change = change_of(pairing, pairing.extract(params), due, method)

    def moved(tree, how):
      new = pairing.restore(how(pairing.extract(tree)), lambda x: x, tree)
      return jax.tree.map(lambda x, y: x.astype(y.dtype), new, tree)

    refactored = moved(params, change.factors)
    steps, inner_state = inner.update(
      moved(updates, change.gradients),
      _transport(state.inner_state, change, moved),
      refactored,
      **extra_args,
    )
    updates = jax.tree.map(
      lambda step, new, old: step + (new - old).astype(step.dtype),
      steps,
      refactored,
      params,
    )
    return updates, RefactorState(
      optax.safe_increment(state.count), inner_state
    )

  return optax.GradientTransformationExtraArgs(init, update)


# States that can be transformed, and states that adapt to another factorisation
# by themselves.
_MOMENTS = (optax.ScaleByAdamState, optax.TraceState)
_INVARIANT = (ScaleByLoraRiteState, ScaleByAltLoraState)


def _check_can_move(state, structure):
  """Raises `ValueError` for an inner state that cannot be transformed."""

  def is_known(x):
    return isinstance(x, (*_MOMENTS, *_INVARIANT))

  for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_known):
    place = jax.tree_util.keystr(path)
    if isinstance(x, _MOMENTS):
      moments = x.mu if isinstance(x, optax.ScaleByAdamState) else x.trace
      if jax.tree.structure(moments) != structure:
        raise ValueError(
          f'inner keeps moments of one factor without the other ({place}): '
          'they cannot be balanced'
        )
    elif not is_known(x) and jnp.ndim(x):
      raise ValueError(
        f'inner keeps {jnp.shape(x)} at {place}, not a moment of Adam '
        'or momentum: it would not fit the pairs once they are balanced'
      )


def _transport(state, change, moved):
  """Transforms every Adam moment and momentum of an optimizer state."""

  def is_moments(x):
    return isinstance(x, _MOMENTS)

  def each(x):
    if isinstance(x, optax.ScaleByAdamState):
      return x._replace(
        mu=moved(x.mu, change.gradients), nu=moved(x.nu, change.squares)
      )
    if isinstance(x, optax.TraceState):
      return x._replace(trace=moved(x.trace, change.gradients))
    return x

  return jax.tree.map(each, state, is_leaf=is_moments)
