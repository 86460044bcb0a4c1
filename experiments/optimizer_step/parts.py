"""Where does a LoRA-RITE step spend its time?

Times the parts of the step as separate functions, interleaved with the whole
step and with optax.adamw, on one stacked tree.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lora_opt
from experiments.optimizer_step.runners import JaxRunner
from experiments.optimizer_step.trees import SHAPES, make_gradients, make_tree
from lora_opt import linalg


def wide_factors(tree):
  """[(leaf, whether its rank axis comes first)]."""
  return [
    (leaf, path[-1].key == 'lora_b')
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


@jax.jit
def finite_check(tree):
  return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree))


@jax.jit
def three_grams(params, gradients, old):
  """F^T F, G^T G and F_old^T F of every factor."""
  out = []
  triples = zip(*map(wide_factors, (params, gradients, old)), strict=True)
  for (f, wide), (g, _), (before, _) in triples:
    out += [linalg.gram(x, y, wide=wide)
            for x, y in ((f, f), (g, g), (before, f))]  # fmt: skip
  return out


@functools.partial(jax.jit, donate_argnums=0)
def two_products(mu, gradients, matrices):
  """Two products for each factor, as for a new momentum: M T + G T."""
  leaves = [
    linalg.matmul(m, t, wide=wide) + linalg.matmul(g, t, wide=wide)
    for (m, wide), (g, _), t in zip(
      wide_factors(mu), wide_factors(gradients), matrices, strict=True
    )
  ]
  return jax.tree.unflatten(jax.tree.structure(mu), leaves)


@functools.partial(jax.jit, donate_argnums=0)
def apply(params, mu):
  """Reads two trees and writes one."""
  return jax.tree.map(lambda x, y: 0.999 * x + 1e-4 * y, params, mu)


def small(tree):
  """Cuts every long axis of a tree to the rank, which leaves only r x r work.

  The new factors are nearly orthogonal, as long ones are: badly conditioned
  factors take another code path.
  """

  def cut(x):
    rank = min(x.shape[1:])
    return jnp.eye(rank) + 0.1 * x[:, :rank, :rank]

  return jax.tree.map(cut, tree)


def timed(call, keep=None):
  """Seconds of one call; `keep` takes its result."""
  start = time.perf_counter()
  out = jax.block_until_ready(call())
  seconds = time.perf_counter() - start
  if keep:
    keep(out)
  return seconds


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--tree', default='gemma_2b', choices=SHAPES)
  parser.add_argument('--rank', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--out', default='runs/optimizer_step')
  args = parser.parse_args(argv)

  make = functools.partial(make_tree, args.tree, args.rank, 'stacked')
  params, gradients = make(0), make_gradients(args.tree, args.rank, 'stacked')
  old, mu = make(2), [make(3)]
  moved = [make(4)]
  matrices = [
    jnp.asarray(np.random.default_rng(0).normal(0, 0.1, x.shape), jnp.float32)
    for x in three_grams(params, gradients, old)[::3]
  ]
  rite = lora_opt.lora_rite(1e-4)
  parts = {
    'optax.adamw': JaxRunner(optax.adamw(1e-4), params, gradients),
    'lora_rite, whole step': JaxRunner(rite, params, gradients),
    'finite check': lambda: timed(lambda: finite_check(gradients)),
    'three Gram matrices': lambda: timed(
      lambda: three_grams(params, gradients, old)
    ),
    'two products': lambda: timed(
      lambda: two_products(mu.pop(), gradients, matrices), mu.append
    ),
    'apply': lambda: timed(lambda: apply(moved.pop(), old), moved.append),
    'all r x r work': JaxRunner(rite, small(params), small(gradients)),
  }
  seconds = {name: [] for name in parts}
  for i in range(args.rounds + 2):
    for name, call in parts.items():
      value = call()
      if i >= 2:
        seconds[name].append(value)
  numbers = sum(x.size for x in jax.tree.leaves(params))
  work = {  # multiplications and additions
    'three Gram matrices': 3 * 2 * numbers * args.rank,
    'two products': 2 * 2 * numbers * args.rank,
  }
  base, rows = statistics.median(seconds['optax.adamw']), {}
  for name, values in seconds.items():
    middle = statistics.median(values)
    rows[name] = {'milliseconds': 1e3 * middle, 'ratio': middle / base}
    speed = ''
    if name in work:
      rows[name]['gflops'] = work[name] / middle / 1e9
      speed = f'{rows[name]["gflops"]:.0f} GFLOP/s'
    print(f'{name:24s}{1e3 * middle:8.1f} ms {middle / base:6.2f}  {speed}')
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  (out / f'parts_{args.tree}.json').write_text(
    json.dumps(rows, indent=1), encoding='utf-8'
  )


if __name__ == '__main__':
  main()
