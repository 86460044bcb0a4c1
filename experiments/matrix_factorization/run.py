"""Which optimizer factors a matrix fastest? RefLoRA's first two figures.

Minimises |A B^T - Y|_F^2 / 2 where Y has the rank of the factors, from an
unbalanced start: A is large, B nearly zero. First with the two step sizes of
the paper, then with a sweep of the learning rate for every recipe. `bound.py`
has the figure of the loss and its upper bound.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import lora_opt
from experiments import recipes, results, sweeps
from experiments.matrix_factorization import bound
from lora_opt import transforms

FOLDER = pathlib.Path(__file__).parent
SIZE, RANK, STEPS, TARGET = 90, 14, 100, 1e-3
RATES = 2.0 ** np.arange(-12, 2.5, 0.5)
PAPER_RATES = (0.01, 0.03)


def reflora_sgd(rate):
  return optax.chain(
    transforms.on_lora_pairs(transforms.precondition_by_refactoring()),
    optax.sgd(rate),
  )


# Without Adam, as in the paper's figure.
PLAIN = {
  'LoRA': optax.sgd,
  'ScaledGD': functools.partial(lora_opt.scaled_gd, reg=0.0),
  'RefLoRA': reflora_sgd,
  'RefLoRA, real': lambda rate: lora_opt.balanced(optax.sgd(rate)),
  'RefLoRA-S': lambda rate: transforms.refactor_by_norms(optax.sgd(rate)),
}
METHODS = {
  'sgd': optax.sgd,
  'scaled_gd, reg = 0': PLAIN['ScaledGD'],
  'RefLoRA, SGD': PLAIN['RefLoRA'],
  'RefLoRA-S, SGD': PLAIN['RefLoRA-S'],
} | {k: v for k, v in recipes.RECIPES.items() if k != 'sgd'}


def make_problem(key):
  """Factors and Y; singular values are 11 to 19 for Y, and about 9 for A."""
  keys = jax.random.split(key, 4)
  left, right = (
    jnp.linalg.qr(jax.random.normal(k, (SIZE, RANK)))[0] for k in keys[:2]
  )
  y = (left * jnp.geomspace(11.0, 19.0, RANK)) @ right.T
  factors = {
    'lora_a': jax.random.normal(keys[2], (SIZE, RANK)),
    'lora_b': 0.015 * jax.random.normal(keys[3], (RANK, SIZE)),
  }
  return factors, y


def loss_fn(factors, y):
  return jnp.sum(jnp.square(factors['lora_a'] @ factors['lora_b'] - y)) / 2


def losses_of(make, rate, seed, steps, decay=False):
  """The loss before and after each step (1 + steps,).

  Args:
    make: learning rate -> optimizer.
    rate: the learning rate.
    seed: seed of problem and start.
    steps: number of steps.
    decay: whether the rate follows a cosine to zero or is constant; a boolean,
      may be traced.
  """
  factors, y = make_problem(jax.random.key(seed))

  def schedule(count):
    cosine = (1 + jnp.cos(jnp.pi * count / steps)) / 2
    return rate * jnp.where(decay, cosine, 1.0)

  tx = make(schedule)

  def step(carry, _):
    factors, state = carry
    updates, state = tx.update(jax.grad(loss_fn)(factors, y), state, factors)
    factors = jax.tree.map(jnp.add, factors, updates)
    return (factors, state), loss_fn(factors, y)

  carry = factors, tx.init(factors)
  _, losses = jax.lax.scan(step, carry, length=steps)
  return jnp.concatenate([loss_fn(factors, y)[None], losses])


def steps_to(target, losses):
  """The first step after which the loss is at most target (...,); else inf."""
  below = losses <= target
  return np.where(below.any(-1), below.argmax(-1).astype(float), np.inf)


def paper_rows(seeds, steps):
  for name in PLAIN:

    def train(rate, seed, _, make=PLAIN[name]):
      return losses_of(make, rate, seed, steps)

    losses = sweeps.sweep(train, PAPER_RATES, seeds)
    for rate, runs in zip(PAPER_RATES, losses, strict=True):
      yield {'method': name, 'rate': rate, 'losses': runs}


def sweep_rows(names, seeds, steps):
  for name in tqdm.tqdm(names):

    def train(rate, seed, _, make=METHODS[name]):
      each = jax.vmap(lambda decay: losses_of(make, rate, seed, steps, decay))
      return each(jnp.array([False, True]))

    losses = sweeps.sweep(train, RATES, seeds)
    for i, schedule in enumerate(('constant', 'cosine')):
      runs = np.nan_to_num(losses[:, :, i], nan=np.inf)
      yield {
        'method': name,
        'schedule': schedule,
        'rates': RATES,
        'losses': runs[..., -1],
        'steps_to_target': steps_to(TARGET, runs),
      }


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--parts', nargs='+', default=['bound', 'paper', 'sweep'])
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=STEPS)
  parser.add_argument('--methods', nargs='+', default=list(METHODS))
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  parts = {
    'bound': lambda: bound.rows(20),
    'paper': lambda: paper_rows(args.seeds, args.steps),
    'sweep': lambda: sweep_rows(args.methods, args.seeds, args.steps),
  }
  for part in args.parts:
    results.save_rows(args.out / f'{part}.jsonl', parts[part]())


if __name__ == '__main__':
  main()
