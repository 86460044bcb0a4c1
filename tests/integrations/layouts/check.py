"""Does `lora_opt.pairs` read a library's tree as that library means it?

    python -m tests.integrations.layouts.check MODULE [--expect FILE]

runs every case of one module beside this file, in an environment that has the
library. Refactoring the pairs found, (A T, B T^-T), must leave the library's
own forward pass as it is, and changing any one pair must not: both fail if an
axis, a partner or a batch is misread.
"""

import argparse
import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt import pairs


class Case(NamedTuple):
  """A tree of LoRA parameters (others may be among them) and its meaning."""

  layout: str | tuple[str, ...]  # the layouts that AUTO should take
  sites: int
  tree: Any
  forward: Callable[[Any], Any]  # the library's own, of the tree
  # Of the forward pass: float32 through a few layers.
  rtol: float = 1e-4
  layouts: Any = pairs.AUTO


def randomised(case: Case, seed: int):
  """(sites, pairs): both factors random, of the size of a unit change."""
  sites = pairs.find_sites(case.tree, case.layouts)
  rng = np.random.default_rng(seed)

  def factor(s, dim):
    values = rng.normal(size=(s.batch, dim, s.rank)) * (dim * s.rank) ** -0.25
    return jnp.asarray(values, jnp.float32)

  found = {
    s.name: pairs.LoraPair(factor(s, s.fan_in), factor(s, s.fan_out))
    for s in sites
  }
  return sites, found


def refactored(pair: pairs.LoraPair, rng) -> pairs.LoraPair:
  """(A T, B T^-T) with a T of small condition number for each of the batch."""
  batch, _, rank = pair.a.shape
  t = np.eye(rank) + 0.3 * rng.normal(size=(batch, rank, rank)) / rank**0.5
  a = np.asarray(pair.a, np.float64) @ t
  b = np.asarray(pair.b, np.float64) @ np.swapaxes(np.linalg.inv(t), -1, -2)
  return pairs.LoraPair(*(jnp.asarray(x, jnp.float32) for x in (a, b)))


def check(case: Case) -> dict[str, Any]:
  """Raises AssertionError; returns what was read, to be recorded."""
  sites, found = randomised(case, seed=0)
  layouts = (case.layout,) if isinstance(case.layout, str) else case.layout
  assert {s.layout.name for s in sites} == set(layouts), sites
  assert len(sites) == case.sites, [s.name for s in sites]
  rng = np.random.default_rng(1)
  dtypes = {p: x.dtype for p, x in pairs.leaf_paths(case.tree) if _array(x)}

  def forward(chosen):
    tree = pairs.restore_pairs(chosen, sites, case.tree)
    tree = _with_dtypes(tree, dtypes)
    return np.asarray(case.forward(tree), np.float64)

  first = forward(found)
  size = np.abs(first).max()
  assert np.isfinite(size) and size > 0
  moved = forward({name: refactored(p, rng) for name, p in found.items()})
  np.testing.assert_allclose(moved, first, rtol=0, atol=case.rtol * size)
  for s in sites:
    # One pair of the batch at a time, so a misread batch axis shows.
    for i in range(s.batch):
      pair = found[s.name]
      other = pair._replace(b=pair.b.at[i].set(-pair.b[i]))
      change = np.abs(forward({**found, s.name: other}) - first).max()
      assert change > 10 * case.rtol * size, (s.name, i, change)
  return {
    'layout': ', '.join(layouts),
    'leaves': {
      p: list(x.shape) for p, x in pairs.leaf_paths(case.tree) if _array(x)
    },
    'sites': {
      s.name: [list(s.batch_shape), s.fan_in, s.fan_out, s.rank] for s in sites
    },
  }


def _array(leaf) -> bool:
  return hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')


def _with_dtypes(tree, dtypes):
  leaves, structure = jax.tree_util.tree_flatten(tree)
  cast = [
    jnp.asarray(leaf).astype(dtypes[path]) if path in dtypes else leaf
    for (path, _), leaf in zip(pairs.leaf_paths(tree), leaves, strict=True)
  ]
  return jax.tree_util.tree_unflatten(structure, cast)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('module', help='a module beside this one')
  parser.add_argument('--record', help='JSON file that gets what was read')
  parser.add_argument('--expect', help='such a file, which must say the same')
  args = parser.parse_args(argv)
  module = importlib.import_module(f'tests.integrations.layouts.{args.module}')
  read = {}
  for name, make in module.CASES.items():
    read[name] = check(make())
    print(f'{name}: {len(read[name]["sites"])} sites, {read[name]["layout"]}')
  if args.expect:
    expected = json.loads(pathlib.Path(args.expect).read_text(encoding='utf-8'))
    assert read == {name: expected[name] for name in read}
  if args.record:
    path = pathlib.Path(args.record)
    old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    lines = (
      f'{json.dumps(name)}: {json.dumps(case)}'
      for name, case in sorted({**old, **read}.items())
    )
    path.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')


if __name__ == '__main__':
  main()
