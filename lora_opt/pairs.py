"""Finds the LoRA pairs of any parameter tree.

A *layout* says where a library keeps the two factors of a site: a regular
expression on the leaf's path, and the axes; see `lora_opt.layouts`.
`find_sites` turns a tree into a list of `Site`. `extract_pairs` converts to the
canonical form that every algorithm uses, and `restore_pairs` converts back.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.layouts import (
  AUTO,
  AXLEARN,
  AXLEARN_OUTPUT,
  AXLEARN_OUTPUT_REPEATED,
  AXLEARN_QKV,
  AXLEARN_QKV_REPEATED,
  FLAX,
  GEMMA,
  KERAS,
  LAST_RESORT,
  LEVANTER,
  LEVANTER_STACKED,
  LORAX,
  PEFT,
  PEFT_EMBEDDING,
  PLAIN,
  QWIX,
  QWIX_BATCHED,
  QWIX_SCANNED_0,
  QWIX_SCANNED_1,
  SKYRL,
  TALL,
  FactorAxes,
  Layouts,
  LoraLayout,
)

__all__ = [
  'AUTO',
  'AXLEARN',
  'AXLEARN_OUTPUT',
  'AXLEARN_OUTPUT_REPEATED',
  'AXLEARN_QKV',
  'AXLEARN_QKV_REPEATED',
  'FLAX',
  'GEMMA',
  'KERAS',
  'LEVANTER',
  'LEVANTER_STACKED',
  'LORAX',
  'PEFT',
  'PEFT_EMBEDDING',
  'PLAIN',
  'QWIX',
  'QWIX_BATCHED',
  'QWIX_SCANNED_0',
  'QWIX_SCANNED_1',
  'SKYRL',
  'TALL',
  'FactorAxes',
  'Layouts',
  'LoraLayout',
  'LoraPair',
  'PairMatrices',
  'Site',
  'extract_pairs',
  'find_sites',
  'leaf_paths',
  'restore_pairs',
]

Array = jax.Array
PyTree = Any

_log = logging.getLogger(__name__)


class LoraPair(NamedTuple):
  """Both factors of one low-rank update, delta_w = a @ b.mT."""

  a: Array  # (batch, fan_in, rank): down factor, random at initialisation
  b: Array  # (batch, fan_out, rank): up factor, zero at initialisation


class PairMatrices(NamedTuple):
  """An r x r matrix or a number for each factor of a pair."""

  a: Array  # (batch, rank, rank) or (batch,)
  b: Array  # (batch, rank, rank) or (batch,)


class Site(NamedTuple):
  """One pair found in a tree."""

  name: str  # unique, contains 'lora', no '/'
  layout: LoraLayout
  a_path: str
  b_path: str
  a_shape: tuple[int, ...]
  b_shape: tuple[int, ...]
  batch_shape: tuple[int, ...]
  fan_in: int
  fan_out: int
  rank: int

  @property
  def batch(self) -> int:
    """The number of matrix pairs in the site."""
    return math.prod(self.batch_shape)


def leaf_paths(tree: PyTree) -> list[tuple[str, Any]]:
  """Paths 'outer/inner/leaf' and leaves, without the '/value' of nnx.

  nnx.Optimizer passes variables at init and bare arrays at update; the path
  must be the same for both.

  >>> leaf_paths({'q': {'lora_a': 1}})
  [('q/lora_a', 1)]
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(_path_name(path), leaf) for path, leaf in leaves]


def _path_name(path) -> str:
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  return name.removesuffix('/value').removesuffix('.value')


def find_sites(tree: PyTree, layout: Layouts = AUTO) -> list[Site]:
  """Finds every LoRA pair of a tree.

  Args:
    tree: parameters, gradients or their shapes; other leaves are ignored.
    layout: one layout, or several to choose from by path, then by shape. A
      leaf belongs to the first pattern that matches its path.

  Returns:
    The sites, in the tree's order.

  Raises:
    ValueError: no pair, a factor without its partner, two leaves for one
      factor, ranks or batch axes that differ, an axis of length zero, a dtype
      that is not a real float of 16 bits or more, or a pair that fits more than
      one layout; the message has path, shapes and what to do. Or `layout` is
      not a valid layout.

  >>> tree = {'q': {'lora_a': jnp.zeros((8, 2)), 'lora_b': jnp.zeros((2, 4))}}
  >>> [site] = find_sites(tree)
  >>> site.name, site.layout.name, site.fan_in, site.fan_out, site.rank
  ('q.lora', 'FLAX', 8, 4, 2)
  """
  layouts = _as_tuple(layout)
  found = _match(leaf_paths(tree), layouts)
  if not found:
    paths = [path for path, _ in leaf_paths(tree)]
    raise ValueError(
      f'no LoRA pair found among {len(paths)} leaves '
      f'({", ".join(paths[:4]) or "none"} ...) with layout '
      f'{_names(layouts)}. Pass the LoRA parameters, or a LoraLayout whose '
      'pattern matches their paths.'
    )
  guessed = len(layouts) > 1
  sites = [_resolve(key, *entry, guessed) for key, entry in found.items()]
  _check_packing(sites)
  _check_factors(sites, dict(leaf_paths(tree)))
  names = [site.name for site in sites]
  if len(set(names)) != len(names):
    twice = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(f'several LoRA pairs have the same name: {twice}.')
  taken = sorted({site.layout.name for site in sites})
  _log.info('%d LoRA sites, layout %s', len(sites), ', '.join(taken))
  return sites


# Modules whose parameters are a stack of all experts, adapted by PEFT as one.
_PACKED = re.compile(r'(?:.*[./])?experts(?:[./]base_layer)*[./]lora_A\b.*')


def _check_packing(sites: Sequence[Site]) -> None:
  """Raises ValueError for experts that PEFT packs into the rank axis."""
  for s in sites:
    if s.layout == PEFT and len(s.a_shape) == 2 and _PACKED.match(s.a_path):
      raise ValueError(
        f'{s.a_path} {s.a_shape} and {s.b_path} {s.b_shape} hold the pairs of '
        'all experts in one rank axis, as PEFT does for target_parameters. '
        'Reshape them to (experts, rank, in) and (out, rank, experts), the '
        'second then transposed to (experts, out, rank): so they are read.'
      )


def _check_factors(sites: Sequence[Site], leaves: Mapping[str, Any]) -> None:
  for s in sites:
    for path, shape in ((s.a_path, s.a_shape), (s.b_path, s.b_shape)):
      if 0 in shape:
        raise ValueError(
          f'{path} {shape} is empty: a LoRA pair needs a rank, and inputs and '
          'outputs, of at least 1. Leave it out of the parameters.'
        )
      dtype = leaves[path].dtype
      if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
        raise ValueError(
          f'{path} {shape} is {dtype}: the factors of a LoRA pair must be '
          'bfloat16, float16, float32 or float64 to be trained. Cast it.'
        )


def _as_tuple(layout: Layouts) -> tuple[LoraLayout, ...]:
  layouts = (layout,) if isinstance(layout, LoraLayout) else tuple(layout)
  for one in layouts:
    if not isinstance(one, LoraLayout):
      raise ValueError(
        f'layout={layout!r} must be a LoraLayout or several of them, such as '
        'lora_opt.pairs.FLAX.'
      )
    if 'factor' not in re.compile(one.pattern).groupindex:
      raise ValueError(
        f'layout {one.name}: its pattern {one.pattern!r} needs a group '
        f'(?P<factor>...) that reads {one.a!r} or {one.b!r}.'
      )
  return layouts


def _names(layouts: Sequence[LoraLayout]) -> str:
  return 'AUTO' if layouts == AUTO else '/'.join(x.name for x in layouts)


def _match(leaves, layouts):
  """{(module, ...): (candidate layouts, {factor: (path, shape)})}."""
  by_pattern: dict[str, list[LoraLayout]] = {}
  for layout in layouts:
    by_pattern.setdefault(layout.pattern, []).append(layout)
  found: dict[tuple, tuple] = {}
  taken: set[str] = set()
  for pattern, candidates in by_pattern.items():
    if pattern in LAST_RESORT and found:
      break
    compiled = re.compile(pattern)
    left = [(path, leaf) for path, leaf in leaves if path not in taken]
    for path, leaf in left:
      match = compiled.fullmatch(path)
      if not match:
        continue
      taken.add(path)
      groups = match.groupdict()
      factor = groups.pop('factor')
      key = (pattern, *(groups[name] or '' for name in sorted(groups)))
      factors = found.setdefault(key, (candidates, {}))[1]
      if factor in factors:
        raise ValueError(
          f'{path} and {factors[factor][0]} are both factor {factor!r} of one '
          'LoRA pair. Give the layout a pattern that tells them apart.'
        )
      factors[factor] = (path, tuple(leaf.shape))
  return found


def _resolve(key, candidates, factors, guessed: bool) -> Site:
  """The only site that a pair of leaves can be, or an error.

  Args:
    key: pattern and module.
    candidates: the layouts with this pattern.
    factors: {factor: (path, shape)}.
    guessed: whether the layout is to be guessed, not given by the caller.
  """
  for layout in candidates:
    if factors.keys().isdisjoint((layout.a, layout.b)):
      said, (path, _) = next(iter(factors.items()))
      raise ValueError(
        f'layout {layout.name}: its group `factor` reads {said!r} of {path}, '
        f'not {layout.a!r} or {layout.b!r}.'
      )
    for factor in (layout.a, layout.b):
      if factor not in factors:
        path, shape = next(iter(factors.values()))
        raise ValueError(
          f'{path} {shape} has no partner: factor {factor!r} of this LoRA '
          'pair is missing. Give the optimizer both factors: a partition or a '
          'mask must not part them.'
        )
  sites = [
    site
    for layout in candidates
    if (site := _read(key, layout, factors)) is not None
  ]
  # The pair of a square weight also fits with exchanged axes, but trains badly.
  sensible = [s for s in sites if s.rank <= max(s.fan_in, s.fan_out)]
  sites = sensible if guessed and sensible else sites
  taken = {site.layout.name for site in sites}
  if taken == {'QWIX', 'QWIX_SCANNED_1'}:
    # Every pair scanned on axis 1 also fits as an einsum pair; an einsum pair
    # whose axes happen to be equal there is rare.
    sites = sites[1:]
  shapes = ' and '.join(f'{p} {s}' for p, s in factors.values())
  if len(sites) == 1:
    site = sites[0]
    if guessed and site not in sensible:
      raise ValueError(
        f'{shapes} read as {site.layout.name} would have rank {site.rank} for '
        f'a {site.fan_in} x {site.fan_out} matrix. Pass the layout that they '
        f'were written in, or layout=lora_opt.pairs.{site.layout.name} if this '
        'is what they are.'
      )
    return site
  if not sites:
    raise ValueError(
      f'{shapes} do not fit together as a LoRA pair of layout '
      f'{_names(candidates)}: rank or batch axes differ. Check the shapes, or '
      'pass the layout they were written in.'
    )
  raise ValueError(
    f'{shapes} can be read as {_names([site.layout for site in sites])}. '
    'Pass the one it is, for example '
    f'layout=lora_opt.pairs.{sites[0].layout.name}; for some paths only, as '
    'docs/libraries.md says under "Stacked experts".'
  )


def _read(key, layout: LoraLayout, factors) -> Site | None:
  (a_path, a_shape), (b_path, b_shape) = factors[layout.a], factors[layout.b]
  ndims = len(a_shape), len(b_shape)
  if layout.ndims is not None and ndims not in layout.ndims:
    return None
  a_axes, b_axes = layout.a_axes.split(ndims[0]), layout.b_axes.split(ndims[1])
  if a_axes is None or b_axes is None:
    return None
  a_batch, a_dims, a_rank = ([a_shape[i] for i in axes] for axes in a_axes)
  b_batch, b_dims, b_rank = ([b_shape[i] for i in axes] for axes in b_axes)
  if a_batch != b_batch or a_rank != b_rank:
    return None
  name = '.'.join(part.replace('/', '.') for part in key[1:][::-1] if part)
  return Site(
    name=f'{name}.lora' if name else 'lora',
    layout=layout,
    a_path=a_path,
    b_path=b_path,
    a_shape=a_shape,
    b_shape=b_shape,
    batch_shape=tuple(a_batch),
    fan_in=math.prod(a_dims),
    fan_out=math.prod(b_dims),
    rank=a_rank[0],
  )


def _order(axes: FactorAxes, ndim, rank_last):
  """The leaf's axes in canonical order, and the number of batch axes."""
  batch, rest, rank = axes.split(ndim)
  in_front = not rank_last and axes.rank_in_front(ndim)
  return batch + (rank + rest if in_front else rest + rank), len(batch)


def _to_canonical(leaf, axes: FactorAxes, rank_last) -> Array:
  order, batch = _order(axes, leaf.ndim, rank_last)
  moved = jnp.transpose(leaf, order)
  count, rank = math.prod(moved.shape[:batch]), leaf.shape[axes.rank]
  in_front = order[batch] == axes.rank % leaf.ndim
  return moved.reshape(count, *((rank, -1) if in_front else (-1, rank)))


def _from_canonical(x, axes: FactorAxes, shape, rank_last) -> Array:
  order, batch = _order(axes, len(shape), rank_last)
  in_front = order[batch] == axes.rank % len(shape)
  # Vectors along the long axis have a rank axis of length one.
  sizes = list(shape)
  sizes[axes.rank] = x.shape[1] if in_front else x.shape[2]
  x = x.reshape([sizes[i] for i in order])
  return jnp.transpose(x, [order.index(i) for i in range(len(shape))])


def extract_pairs(
  tree: PyTree, sites: Sequence[Site], *, rank_last: bool = True
) -> dict[str, LoraPair]:
  """Extracts the canonical pairs by site name; the dtype is kept.

  Args:
    tree: parameters, or a tree like them.
    sites: from `find_sites`.
    rank_last: False leaves the rank in front, (batch, rank, dim), if it is in
      front in the leaf. That saves a transposition, and suffices for
      algorithms that use only elements and norms.

  Returns:
    {name: pair of (batch, dim, rank)}.

  >>> tree = {'q': {'lora_a': jnp.zeros((8, 2)), 'lora_b': jnp.zeros((2, 4))}}
  >>> pairs = extract_pairs(tree, find_sites(tree))
  >>> pairs['q.lora'].a.shape, pairs['q.lora'].b.shape
  ((1, 8, 2), (1, 4, 2))
  """
  leaves = dict(leaf_paths(tree))
  return {
    s.name: LoraPair(
      _to_canonical(leaves[s.a_path], s.layout.a_axes, rank_last),
      _to_canonical(leaves[s.b_path], s.layout.b_axes, rank_last),
    )
    for s in sites
  }


def restore_pairs(
  pairs: Mapping[str, LoraPair],
  sites: Sequence[Site],
  tree: PyTree,
  outside: Callable[[Any], Any] = lambda leaf: leaf,
  *,
  rank_last: bool = True,
) -> PyTree:
  """Inverse of `extract_pairs`: puts pairs into a tree like `tree`.

  Args:
    pairs: canonical pairs by site name. For vectors, (batch, dim, 1), the rank
      axis of the leaves has length one.
    sites: the sites of the pairs.
    tree: gives the structure of the result.
    outside: maps a leaf that is in no pair to the leaf of the result.
    rank_last: the value that was passed to `extract_pairs`.

  Returns:
    A tree with the structure of `tree` and the dtype of `pairs`.

  >>> tree = {'q': {'lora_a': jnp.zeros((8, 2)), 'lora_b': jnp.zeros((2, 4))}}
  >>> sites = find_sites(tree)
  >>> again = restore_pairs(extract_pairs(tree, sites), sites, tree)
  >>> again['q']['lora_b'].shape
  (2, 4)
  """
  leaves = {}
  for s in sites:
    for x, path, axes, shape in (
      (pairs[s.name].a, s.a_path, s.layout.a_axes, s.a_shape),
      (pairs[s.name].b, s.b_path, s.layout.b_axes, s.b_shape),
    ):
      leaves[path] = _from_canonical(x, axes, shape, rank_last)

  def pick(path, leaf):
    name = _path_name(path)
    return leaves[name] if name in leaves else outside(leaf)

  return jax.tree_util.tree_map_with_path(pick, tree)


def lora_labels(tree: PyTree, layout: Layouts = AUTO) -> PyTree:
  """Labels for `optax.partition`: 'lora' for leaves in a pair, else 'other'.

  A tree without leaves is no error, so that `optax.tree_map_params`, which
  passes such a placeholder, works.

  >>> lora_labels({'lora_a': jnp.zeros((4, 2)), 'lora_b': jnp.zeros((2, 4)),
  ...              'w': jnp.zeros(3)})
  {'lora_a': 'lora', 'lora_b': 'lora', 'w': 'other'}
  """
  if not jax.tree.leaves(tree):
    return tree
  sites = find_sites(tree, layout)
  paths = {path for s in sites for path in (s.a_path, s.b_path)}
  return jax.tree_util.tree_map_with_path(
    lambda path, _: 'lora' if _path_name(path) in paths else 'other', tree
  )


def factor_labels(tree: PyTree, layout: Layouts = AUTO) -> PyTree:
  """Labels for `optax.partition`: 'a' (down factor), 'b' (up) or 'other'.

  >>> factor_labels({'lora_a': jnp.zeros((4, 2)), 'lora_b': jnp.zeros((2, 4)),
  ...                'w': jnp.zeros(3)})
  {'lora_a': 'a', 'lora_b': 'b', 'w': 'other'}
  """
  if not jax.tree.leaves(tree):
    return tree
  sites = find_sites(tree, layout)
  labels = {s.a_path: 'a' for s in sites} | {s.b_path: 'b' for s in sites}
  return jax.tree_util.tree_map_with_path(
    lambda path, _: labels.get(_path_name(path), 'other'), tree
  )
