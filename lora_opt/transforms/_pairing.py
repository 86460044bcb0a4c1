"""Turns an optax transformation over pairs into one over any LoRA tree."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import pairs as pairs_lib
from lora_opt.pairs import LoraPair, PairMatrices, Site

PyTree = Any


class OnLoraPairsState(NamedTuple):
  """State of `on_lora_pairs`."""

  # The inner transformation's state in its stored form: factor-sized parts are
  # trees with the structure of the parameters. Small parts stay dicts by group:
  # split up by site, each piece would be a separate kernel to compile.
  inner_state: Any


class Pairing:
  """The sites of one tree in groups, and conversions between both forms.

  One array operation handles one group: equal sites that are not scanned are
  stacked, a scanned site is a stack already.
  """

  def __init__(
    self, tree: PyTree, layout, elementwise: bool, native: bool = False
  ):
    self.tree = tree
    self.rank_last = not (elementwise or native)
    self._rank_last_at_init = not elementwise
    self.sites = pairs_lib.find_sites(tree, layout)
    dtypes = {path: leaf.dtype for path, leaf in pairs_lib.leaf_paths(tree)}
    self._dtypes = dtypes
    self.groups: dict[str, list[Site]] = {}
    for s in self.sites:
      key = s.name
      if not elementwise and s.batch == 1:
        types = f'{dtypes[s.a_path]}_{dtypes[s.b_path]}'
        axes = f'{s.layout.a_rank}_{s.layout.b_rank}'
        key = f'lora_{s.fan_in}x{s.fan_out}_rank_{s.rank}_{types}_{axes}'
      self.groups.setdefault(key, []).append(s)

  def extract(
    self, tree: PyTree, rank_last: bool | None = None
  ) -> dict[str, LoraPair]:
    """Converts a tree to groups of canonical pairs, in float32 or wider."""
    rank_last = self.rank_last if rank_last is None else rank_last
    pairs = pairs_lib.extract_pairs(tree, self.sites, rank_last=rank_last)
    pairs = jax.tree.map(_at_least_float32, pairs)
    return {
      key: jax.tree.map(_concatenate, *(pairs[s.name] for s in sites))
      for key, sites in self.groups.items()
    }

  def restore(
    self, groups: dict[str, Any], outside, like: PyTree = None
  ) -> PyTree:
    """Converts groups to a tree like the parameters, or like a given tree."""
    like = self.tree if like is None else like
    pairs = {}
    for key, sites in self.groups.items():
      parts = zip(*(_split(x, sites) for x in groups[key]), strict=True)
      for s, (a, b) in zip(sites, parts, strict=True):
        pairs[s.name] = LoraPair(a, b)
    return pairs_lib.restore_pairs(
      pairs, self.sites, like, outside, rank_last=self.rank_last
    )

  def transposed(self) -> dict[str, PairMatrices]:
    """{group: which factors have the rank axis first in their leaf}."""
    out = {}
    for key, (site, *_) in self.groups.items():
      out[key] = PairMatrices(
        site.layout.a_axes.rank_in_front(len(site.a_shape)),
        site.layout.b_axes.rank_in_front(len(site.b_shape)),
      )
    return out

  def dtypes(self) -> dict[str, PairMatrices]:
    """{group: the dtypes of its leaves}."""
    return {
      key: PairMatrices(self._dtypes[site.a_path], self._dtypes[site.b_path])
      for key, (site, *_) in self.groups.items()
    }

  def is_groups(self, x: Any) -> bool:
    """Whether a part of an inner state has one entry per group."""
    return isinstance(x, dict) and x.keys() == self.groups.keys()

  def abstract(self) -> dict[str, LoraPair]:
    """Shapes of the pairs as `inner.init` saw them, which is never natively."""
    extract = functools.partial(self.extract, rank_last=self._rank_last_at_init)
    return jax.eval_shape(extract, self.tree)


def _at_least_float32(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _concatenate(*xs):
  return xs[0] if len(xs) == 1 else jnp.concatenate(xs)


def _split(x, sites: Sequence[Site]):
  """The inverse of concatenating the arrays of these sites."""
  out, start = [], 0
  for s in sites:
    out.append(x[start : start + s.batch])
    start += s.batch
  return out


def _holds_pairs(groups: dict) -> bool:
  return all(isinstance(x, LoraPair) for x in groups.values())


def on_lora_pairs(
  inner: optax.GradientTransformation,
  layout: pairs_lib.Layouts = pairs_lib.AUTO,
  *,
  elementwise: bool = False,
  native: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Shows any parameter tree to `inner` as a dict of `LoraPair`.

  `inner` is an ordinary optax transformation whose parameters and updates are
  {name: LoraPair} with factors (batch, dim, rank), rank last, in float32 or
  wider. Its updates come back in the structure, shapes and dtypes of the
  gradients. Leaves outside any pair pass through unchanged (the recipes route
  them elsewhere with `optax.partition`).

  The state is stored in the form that optax, orbax and sharding rules expect.
  Dicts of `LoraPair` become trees with the structure of the parameters
  (vectors, whose rank axis has length one, keep that axis). Everything else,
  such as dicts of `PairMatrices`, is stored unchanged.

  Args:
    inner: a transformation over pairs.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`.
    elementwise: says that `inner` works elementwise and with norms of whole
      factors. Then sites are not stacked (stacking makes r x r work compile
      much faster, but copies), and the rank axis stays where it is in the leaf.
    native: `inner.update` sees the rank axis where it is in the leaf, which
      saves transpositions. It gets two extra arguments: `transposed`,
      {name: PairMatrices} of booleans, says which factors are
      (batch, rank, dim), and `dtypes`, {name: PairMatrices} of dtypes, says in
      which dtypes the leaves are stored.

  Returns:
    A transformation over the tree. `update` needs `params`.

  Raises:
    ValueError: at init and update, if the tree has no valid pairs.

  >>> double = optax.stateless(lambda g, _: jax.tree.map(lambda x: 2 * x, g))
  >>> tree = {'lora_a': jnp.ones((4, 2)), 'lora_b': jnp.ones((2, 3))}
  >>> tx = on_lora_pairs(double)
  >>> updates, _ = tx.update(tree, tx.init(tree), tree)
  >>> print(updates['lora_b'])
  [[2. 2. 2.]
   [2. 2. 2.]]
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    if not jax.tree.leaves(params):
      return OnLoraPairsState(_placeholder_state(inner, params))
    pairing = Pairing(params, layout, elementwise)
    return OnLoraPairsState(
      _to_rest(pairing, inner.init(pairing.extract(params)))
    )

  def update(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        'LoRA transformations need the parameters: call '
        'tx.update(grads, state, params).'
      )
    pairing = Pairing(params, layout, elementwise, native)
    inner_state = _from_rest(pairing, inner, state.inner_state)
    if native:
      extra_args = {
        **extra_args,
        'transposed': pairing.transposed(),
        'dtypes': pairing.dtypes(),
      }
    groups, inner_state = inner.update(
      pairing.extract(updates),
      inner_state,
      pairing.extract(params),
      **extra_args,
    )
    new = pairing.restore(groups, lambda _: optax.MaskedNode())
    new = jax.tree.map(
      lambda old, x: (
        old if isinstance(x, optax.MaskedNode) else x.astype(old.dtype)
      ),
      updates,
      new,
    )
    # Pairs of different dtypes are computed in the widest of them.
    rest = jax.tree.map(
      lambda x, old: x.astype(old.dtype),
      _to_rest(pairing, inner_state),
      state.inner_state,
    )
    return new, OnLoraPairsState(rest)

  return optax.GradientTransformationExtraArgs(init, update)


def _to_rest(pairing: Pairing, state):
  def convert(x):
    if pairing.is_groups(x) and _holds_pairs(x):
      return pairing.restore(x, lambda _: optax.MaskedNode())
    return x

  return jax.tree.map(convert, state, is_leaf=pairing.is_groups)


def _from_rest(pairing: Pairing, inner, state):
  template = jax.eval_shape(inner.init, pairing.abstract())
  parts, treedef = jax.tree.flatten(template, is_leaf=pairing.is_groups)

  def convert(part, x):
    if not pairing.is_groups(part):
      return x
    if _holds_pairs(part):
      return pairing.extract(x)
    if part.keys() != x.keys():
      raise ValueError(
        'the optimizer state belongs to other parameters: it is of '
        f'{", ".join(sorted(x))}; they are {", ".join(sorted(part))} (shape, '
        'rank, types, axes). Make it by init of such parameters, and cast '
        'neither later.'
      )
    return x

  rest = treedef.flatten_up_to(state)
  return treedef.unflatten(
    [convert(part, x) for part, x in zip(parts, rest, strict=True)]
  )


def _placeholder_state(inner, placeholder):
  """The state with the placeholder in the place of each moment tree.

  `optax.tree_map_params` needs this: it calls init with an object without
  leaves, and looks where the object ends up in the state.
  """
  dummy = {
    'lora': LoraPair(*[jax.ShapeDtypeStruct((1, 1, 1), jnp.float32)] * 2)
  }
  template = jax.eval_shape(inner.init, dummy)

  def is_groups(x):
    return isinstance(x, dict) and x.keys() == dummy.keys()

  def convert(x):
    if is_groups(x):
      return placeholder if _holds_pairs(x) else jnp.zeros(())
    return jnp.zeros(x.shape, x.dtype)

  return jax.tree.map(convert, template, is_leaf=is_groups)
