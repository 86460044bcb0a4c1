"""Does the best learning rate stay the same over rank, alpha and width?

Sweeps the learning rate of every recipe, and of six that take alpha / rank
(five of them are called normalised), on students of several widths, ranks and
alphas, over seeds.
Runs with results in results.jsonl are skipped: delete it to start over.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import lora_opt
from experiments import recipes, results, student, sweeps

FOLDER = pathlib.Path(__file__).parent
WIDTH, RANK = 128, 8
# What is varied: (width, rank, alpha).
AXES = {
  'width': [(w, RANK, RANK) for w in (64, 128, 256, 512)],
  'rank, at alpha = 8': [(WIDTH, r, 8) for r in (4, 8, 16, 32)],
  'alpha': [(WIDTH, RANK, a) for a in (2, 8, 32, 128)],
}
# Recipes that take alpha / rank, with the other options that they need.
NORMALISED = {
  'lora_rite, normalised': functools.partial(
    lora_opt.lora_rite, width_scaling=True
  ),
  'lora_muon, normalised': lora_opt.lora_muon,
  'scaled_gd, normalised': lora_opt.scaled_gd,
  'altlora, normalised': lora_opt.altlora,
  'polora, normalised': lora_opt.polora,
  'recommended': recipes.recommended,
}
METHODS = (*NORMALISED, *recipes.RECIPES)
# Rates an octave apart; a method takes the first prefix that fits its name.
RATES = {
  'lora_rite, normalised': 2.0 ** np.arange(-9, 1),
  'lora_rite': 2.0 ** np.arange(-12, 0),
  'lora_muon': 2.0 ** np.arange(-9, 3),
  'muon': 2.0 ** np.arange(-9, 3),
  'lamb': 2.0 ** np.arange(-9, 3),
  'polora': 2.0 ** np.arange(-9, 3),
  'recommended': 2.0 ** np.arange(-9, 3),
  'scaled_gd': 2.0 ** np.arange(-16, -1),
  'altlora': 2.0 ** np.arange(-16, -1),
  'sgd': 2.0 ** np.arange(-16, -1),
  '': 2.0 ** np.arange(-14, -2),
}


def rates_of(method):
  return next(v for k, v in RATES.items() if method.startswith(k))


def optimizer(method, rate, alpha, rank):
  if method in NORMALISED:
    return NORMALISED[method](rate, lora_scale=alpha / rank)
  return recipes.RECIPES[method](rate)


@functools.cache  # one setting is shared by all axes
def final_losses(method, width, rank, alpha, seeds, steps) -> np.ndarray:
  """Mean losses of the last tenth (rates, seeds); inf where a run diverged."""

  def run(rate, seed, _):
    keys = jax.random.split(jax.random.key(seed), 3)
    problem = student.make_problem(keys[0], width, alpha / rank)
    lora = student.init_lora(keys[1], width, rank)
    tx = optimizer(method, rate, alpha, rank)
    _, losses = student.train(tx, problem, lora, keys[2], steps)
    return jnp.mean(losses[-max(steps // 10, 1) :])

  losses = sweeps.sweep(run, rates_of(method), seeds)
  return np.where(np.isfinite(losses), losses, np.inf)


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument(
    '--methods', nargs='+', choices=METHODS, default=METHODS, metavar='METHOD',
    help='one or more of these',
  )  # fmt: skip
  parser.add_argument('--axes', nargs='+', choices=AXES, default=list(AXES))
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  path = args.out / 'results.jsonl'
  rows = results.load_rows(path) if path.exists() else []
  done = {(row['method'], row['axis'], row['value']) for row in rows}
  work = [(m, a, c) for m in args.methods for a in args.axes for c in AXES[a]]
  for method, axis, (width, rank, alpha) in tqdm.tqdm(work):
    value = {'width': width, 'alpha': alpha}.get(axis, rank)
    if (method, axis, value) in done:
      continue
    losses = final_losses(method, width, rank, alpha, args.seeds, args.steps)
    rows.append(
      {'method': method, 'axis': axis, 'value': value,
       'rates': rates_of(method), 'losses': losses}
    )  # fmt: skip
    results.save_rows(path, rows)


if __name__ == '__main__':
  main()
