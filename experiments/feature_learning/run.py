"""Does B need a larger learning rate, and how does that depend on the width?

Three parts, all with Adam and separate rates for A and B (LoRA+): how both
linear terms of the change of the features scale with the width, the loss over
all pairs of learning rates at width 100, and the best ratio against the width
and the start.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import lora_opt
from experiments import results, sweeps
from experiments.feature_learning import toy

FOLDER = pathlib.Path(__file__).parent
WIDTHS = (64, 256, 1024, 4096)
BASE_WIDTH, RATE_A, RATE_B = 64, 0.01, 0.05
# {name: width -> (rate of A, rate of B)}. At the base width all are the same,
# except for the last, which has another rate of B.
POLICIES = {
  'equal, constant': lambda n: (RATE_A, RATE_A),
  'equal, n^-1/2': lambda n: (RATE_A * (BASE_WIDTH / n) ** 0.5,) * 2,
  'equal, 1/n': lambda n: (RATE_A * BASE_WIDTH / n,) * 2,
  'LoRA+, A 1/n, B constant': lambda n: (RATE_A * BASE_WIDTH / n, RATE_B),
}
HEAT_WIDTH, HEAT_POINTS, HEAT_STEPS = 100, 1000, (10, 200)
RATIO_WIDTHS, RATIO_POINTS, RATIO_STEPS = (32, 128, 512), 128, 100
HEAT_RATES = 2.0 ** np.arange(-12, 1)
RATIO_RATES = 2.0 ** np.arange(-13, 1)


def optimizer(rate_a, rate_b):
  return lora_opt.lora_plus(rate_a, lr_ratio=rate_b / rate_a)


def scaling_rows(widths, seeds, steps, points=200):
  """Yields the sizes of the terms for each start, width and policy."""

  @jax.jit
  def train(rates, problems, factors):
    def one(problem, factors, pair):
      return toy.train(optimizer(*pair), problem, factors, steps)

    over_seeds = jax.vmap(one, in_axes=(0, 0, None))
    # One policy after the other: together, wide ones do not fit into the cache.
    return jax.lax.map(lambda pair: over_seeds(problems, factors, pair), rates)

  keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
  for start in toy.STARTS[:2]:
    for width in tqdm.tqdm(widths):
      make = functools.partial(
        toy.make, width=width, points=points, start=start
      )
      rates = jnp.array([rates_of(width) for rates_of in POLICIES.values()])
      losses, sizes = map(np.asarray, train(rates, *jax.vmap(make)(keys)))
      for name, ends, terms in zip(POLICIES, losses, sizes, strict=True):
        # In the first step one factor is zero, and so is one linear term.
        yield {'start': start, 'policy': name, 'width': width,
               'early': terms[:, 1:3].mean(axis=1),
               'terms': terms[:, 1:].mean(axis=1),
               'losses': ends[:, -1]}  # fmt: skip


def grid_losses(width, start, rates, seeds, points, at):
  """Losses (rates of A, rates of B, seeds, steps in `at`)."""

  def one(rate_a, rate_b, seed):
    problem, factors = toy.make(jax.random.key(seed), width, points, start)
    tx = optimizer(rate_a, rate_b)
    losses, _ = toy.train(tx, problem, factors, max(at))
    return losses[jnp.array(at)]

  # One rate of A after the other: together, they do not fit into memory.
  def row(rate_a):
    over_b = jax.vmap(functools.partial(one, rate_a), in_axes=(0, None))
    over_both = jax.vmap(over_b, in_axes=(None, 0), out_axes=1)
    return over_both(jnp.asarray(rates), jnp.arange(seeds))

  losses = jax.jit(lambda r: jax.lax.map(row, r))(jnp.asarray(rates))
  return np.nan_to_num(np.asarray(losses), nan=np.inf)


def heat_rows(seeds, width, rates, points, at):
  for start in toy.STARTS:
    losses = grid_losses(width, start, rates, seeds, points, at)
    for i, step in enumerate(at):
      yield {'start': start, 'step': step, 'rates': rates,
             'losses': losses[..., i]}  # fmt: skip


def ratio_rows(seeds, widths, rates, points, steps):
  """Yields each seed's smallest loss for every ratio of the rates."""
  for start in toy.STARTS[:2]:
    for width in tqdm.tqdm(widths):
      losses = grid_losses(width, start, rates, seeds, points, (steps,))[..., 0]
      means = np.array(
        [[sweeps.geometric_mean(c).middle for c in row] for row in losses]
      )
      a, b = np.unravel_index(np.argmin(means), means.shape)
      count = len(rates)
      along = [
        [np.diagonal(losses[..., s], k).min() for s in range(seeds)]
        for k in range(-(count - 1) // 2, count)
      ]
      yield {'start': start, 'width': width, 'rate_a': rates[a],
             'rate_b': rates[b], 'losses': along,
             'octaves': np.arange(-(count - 1) // 2, count)}  # fmt: skip


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  add = parser.add_argument
  add('--parts', nargs='+', default=['scaling', 'heat', 'ratio'])
  add('--seeds', type=int, default=3)
  add('--tiny', action='store_true', help='a run of seconds, for the tests')
  add('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  seeds, tiny = args.seeds, args.tiny
  parts = {
    'scaling': lambda: scaling_rows((8, 16) if tiny else WIDTHS, 5, 10),
    'heat': lambda: heat_rows(
      seeds,
      8 if tiny else HEAT_WIDTH,
      HEAT_RATES[::8] if tiny else HEAT_RATES,
      16 if tiny else HEAT_POINTS,
      (1, 2) if tiny else HEAT_STEPS,
    ),
    'ratio': lambda: ratio_rows(
      seeds,
      (8,) if tiny else RATIO_WIDTHS,
      RATIO_RATES[::8] if tiny else RATIO_RATES,
      16 if tiny else RATIO_POINTS,
      2 if tiny else RATIO_STEPS,
    ),
  }
  for part in args.parts:
    results.save_rows(args.out / f'{part}.jsonl', parts[part]())


if __name__ == '__main__':
  main()
