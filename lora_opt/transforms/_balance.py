"""A refactoring that is carried out: factors, gradients and moments move."""

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
  """What (A, B) -> (A P, B P^-T) does, each a function of pairs."""

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
  """Before a step of `inner`, gives both factors the same norm, moments too.

  With s = |B| / |A| the pair becomes (A sqrt(s), B / sqrt(s)): the same
  delta_w. What an Adam (or a momentum) in `inner` knows of gradients is
  rescaled with them: mu_A / sqrt(s) and nu_A / s, and the inverse for B.
  Where a factor is zero there is no s, and the pair is left alone.

  The papers' code does this after the step; before the next one is the same
  path of delta_w, and a whole pass over factors and moments less. Only norms
  are needed beforehand; the rescaling melts into the step of `inner`.

  Args:
    inner: a complete optimizer over the tree, learning rate included; its
      moments, of Adam or momentum, are of the gradients as they come.
    layout: where the pairs are, `lora_opt.pairs`.
    warmup_steps: no rescaling before so many steps.
    every: steps from one rescaling to the next.

  Returns:
    A transformation over the tree. `update` needs `params`.

  Raises:
    ValueError: for a tree without proper pairs, or an inner optimizer whose
      state cannot be moved.

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
  """Before a step of `inner`, makes A^T A = B^T B, and moves moments along.

  With S = (A^T A)^-1 # (B^T B), the geometric mean, and P = S^(1/2) the pair
  becomes (A P, B P^-T): balanced, and the same delta_w. Of all balancing
  changes this one turns the columns least. Gradients and momenta become
  G_A P^-T and G_B P. Second moments of Adam belong to elements, not to a
  matrix; they go over as those of independent elements would, by the squares
  of the elements of P^-T and P.

  Weak directions are balanced as far as `linalg.balancing_change` resolves
  them; a pair with a factor of zero stays as it is, and one whose rank is above
  its inputs or outputs gets equal norms alone, as in `refactor_by_norms`.

  Args:
    inner: a complete optimizer over the tree, learning rate included; its
      moments, of Adam or momentum, are of the gradients as they come.
    layout: where the pairs are, `lora_opt.pairs`.
    warmup_steps: nothing is done before so many steps.
    every: steps from one balancing to the next.

  Returns:
    A transformation over the tree. `update` needs `params`.

  Raises:
    ValueError: for a tree without proper pairs, or an inner optimizer whose
      state cannot be moved.

  References:
    Zhang et al., RefLoRA, arXiv 2505.18877. BaLoRA, arXiv 2605.31484.
  """

  def change_of(pairing, params, due, method):
    factors = Factors.of(
      params, transposed=pairing.transposed(), matrix_method=method
    )
    grams = factors.grams(factors.flatten(params))
    p, p_inverse = linalg.balancing_change(*factors.halves(grams), method)
    # Fewer outputs or inputs than the rank: that factor's directions turn from
    # step to step, and moments carried along with them would diverge.
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
  """sqrt(|B| / |A|) (batch, 1, 1); one where nothing is to be done."""
  a, b = (
    jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True)) for x in pair
  )
  return jnp.where(due, _root_of_ratio(a, b), 1)


def _root_of_ratio(a, b):
  """sqrt(b / a) of two norms, in bounds; one where one of them is zero."""
  usable = (a > 0) & (b > 0)
  root = jnp.sqrt(jnp.where(usable, b, 1) / jnp.where(usable, a, 1))
  return jnp.clip(root, 1 / linalg.MAX_CHANGE, linalg.MAX_CHANGE)


def _refactored(
  inner, layout, change_of, warmup_steps, every, **pairing_options
):
  """Refactors, then steps."""
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
      # The step will not happen; moments must then stay with the factors.
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


# What can be moved, and what finds its way to another factorisation itself.
_MOMENTS = (optax.ScaleByAdamState, optax.TraceState)
_INVARIANT = (ScaleByLoraRiteState, ScaleByAltLoraState)


def _check_can_move(state, structure):
  """Refuses an inner optimizer that keeps what would be left behind."""

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
  """Every Adam moment and momentum of an optimizer state, refactored."""

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
