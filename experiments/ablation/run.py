"""Which parts of LoRA-RITE and of RefLoRA matter?

Every variant is the default with one thing changed. The learning rate of each
is swept, with the same seeds, steps and number of rates, and a cosine schedule
to zero.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments import results, sweeps
from experiments.ablation.problems import PROBLEMS
from experiments.ablation.variants import FAMILIES

FOLDER = pathlib.Path(__file__).parent
# Clipping and skipping are meant for spikes.
PROBLEMS_OF = {
  'LoRA-RITE': ('student', 'matrix', 'spikes'),
  'RefLoRA': ('student', 'matrix'),
}
# Losses start at one; above this limit, training has diverged.
LIMIT = 1e6


@functools.cache
def trainer(make, problem, steps):
  """Returns one function for all variants that differ only in numbers."""

  def train(rate, seed, options):
    numbers, b_std = options
    bound = functools.partial(make, **numbers)
    return PROBLEMS[problem](bound, b_std, rate, seed, steps)

  return train


def final_losses(variant, problem, seeds, steps) -> np.ndarray:
  """Final losses (rates, seeds); inf where training diverged."""
  train = trainer(variant.make, problem, steps)
  options = jax.tree.map(jnp.asarray, (variant.numbers, variant.b_std))
  losses = sweeps.sweep(train, variant.rates, seeds, options)
  return np.where(losses < LIMIT, losses, np.inf)


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=150)
  parser.add_argument('--families', nargs='+', default=list(FAMILIES))
  parser.add_argument('--variants', nargs='+', help='default: all')
  parser.add_argument('--problems', nargs='+', help='default: of the family')
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  work = [
    (family, name, problem)
    for family in args.families
    for name in FAMILIES[family]
    if not args.variants or name in args.variants
    for problem in args.problems or PROBLEMS_OF[family]
  ]
  rows = []
  for family, name, problem in tqdm.tqdm(work):
    variant = FAMILIES[family][name]
    losses = final_losses(variant, problem, args.seeds, args.steps)
    rows.append(
      {'family': family, 'variant': name, 'problem': problem,
       'rates': variant.rates, 'losses': losses}
    )  # fmt: skip
    results.save_rows(args.out / 'results.jsonl', rows)


if __name__ == '__main__':
  main()
