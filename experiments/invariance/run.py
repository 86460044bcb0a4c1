"""Does the path of delta_w depend on how it is factored?

Trains from (A, B) and from (A T, B T^-T), which have the same A B^T, with every
recipe, for T from several groups, in float64 and float32. Records how far apart
the two paths of A B^T get.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import lora_opt
from experiments import results
from experiments.recipes import recommended
from lora_opt import transforms

FOLDER = pathlib.Path(__file__).parent
# fan_in, fan_out, rank of two sites; LoRA-RITE's clipping couples them.
SITES = {'wide': (24, 40, 4), 'tall': (40, 16, 4)}
CONDITIONS = (10, 100, 1000, 10000)
KINDS = ('signed permutation', 'scalar', 'orthogonal', *CONDITIONS)
# B = 0 is the usual start of LoRA; (A T, 0) then has the same delta_w.
STARTS = ('B random', 'B = 0')


def _in_front_of_sgd(rate):
  return optax.chain(
    transforms.on_lora_pairs(transforms.precondition_by_refactoring()),
    optax.sgd(rate),
  )


# {name: (optimizer, the group under which its path should not change)}
METHODS = {
  'lora_rite': (lora_opt.lora_rite(0.05), 'GL(r)'),
  'lora_rite, decay': (lora_opt.lora_rite(0.05, weight_decay=0.1), 'GL(r)'),
  'lora_rite, eigenvalues': (
    lora_opt.lora_rite(0.05, escaped_mass='eigenvalues'),
    'GL(r)',
  ),
  'lora_rite, low_memory': (lora_opt.lora_rite(0.05, low_memory=True), 'GL(r)'),
  'lora_muon': (lora_opt.lora_muon(0.2), 'GL(r)'),
  'altlora': (lora_opt.altlora(0.1), 'GL(r)'),
  'scaled_gd, reg = 0': (lora_opt.scaled_gd(0.1, reg=0.0), 'GL(r)'),
  'RefLoRA in front of SGD': (_in_front_of_sgd(0.02), 'GL(r)'),
  'balanced(sgd)': (lora_opt.balanced(optax.sgd(0.02)), 'GL(r)'),
  'scaled_gd': (lora_opt.scaled_gd(0.1), 'O(r)'),
  'sgd': (optax.sgd(0.02), 'O(r)'),
  'sgd, momentum': (optax.sgd(0.01, momentum=0.9), 'O(r)'),
  'muon': (lora_opt.muon(0.1), 'O(r)'),
  'shampoo': (lora_opt.shampoo(0.02), 'O(r)'),
  'recommended': (recommended(0.05), 'O(r), scalars'),
  'polora': (lora_opt.polora(0.05), 'O(r)'),
  'reflora, real': (
    lora_opt.reflora(0.02, refactoring='real'),
    'signed permutations, scalars',
  ),
  'balanced(adamw)': (
    lora_opt.balanced(lora_opt.adamw(0.02)),
    'signed permutations, scalars',
  ),
  'reflora_s': (lora_opt.reflora_s(0.02), 'signed permutations, scalars'),
  'lamb': (lora_opt.lamb(0.05), 'signed permutations, scalars'),
  'lamb, eps = 1e-12': (
    lora_opt.lamb(0.05, eps=1e-12),
    'signed permutations, scalars',
  ),
  'reflora': (lora_opt.reflora(0.02), 'signed permutations'),
  'lora_pro': (lora_opt.lora_pro(0.02), 'signed permutations'),
  'scaled_adamw': (lora_opt.scaled_adamw(0.02), 'signed permutations'),
  'lora_fa': (lora_opt.lora_fa(0.02), 'signed permutations'),
  'lora_plus': (lora_opt.lora_plus(0.02), 'signed permutations'),
  'adamw': (lora_opt.adamw(0.02), 'signed permutations'),
}


def group_element(kind, rank, rng) -> np.ndarray:
  """A random T (rank, rank)."""
  orthogonal, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
  if kind == 'signed permutation':
    return np.eye(rank)[rng.permutation(rank)] * rng.choice([-1, 1], rank)
  if kind == 'scalar':
    return 10.0 * np.eye(rank)
  if kind == 'orthogonal':
    return orthogonal
  other, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
  # From 1 / sqrt(condition) to sqrt(condition).
  return (orthogonal * np.geomspace(kind**-0.5, kind**0.5, rank)) @ other


def starts(seed, start):
  """Returns equivalent factors (1 + kinds, ...) and targets, in float64."""
  rng = np.random.default_rng(seed)
  factors, targets = {}, {}
  for site, (fan_in, fan_out, rank) in SITES.items():
    a = rng.normal(size=(fan_in, rank)) * fan_in**-0.5
    b = rng.normal(size=(fan_out, rank)) * fan_out**-0.5
    b = 0 * b if start == 'B = 0' else b
    changes = [np.eye(rank)] + [group_element(k, rank, rng) for k in KINDS]
    factors[site] = {
      'lora_a': np.stack([a @ t for t in changes]),
      'lora_b': np.stack([np.linalg.solve(t, b.T) for t in changes]),
    }
    targets[site] = rng.normal(size=(fan_in, fan_out)) * fan_in**-0.5
  return factors, targets


def path(tx, factors, targets, key, steps):
  """delta_w of all sites before and after each step (1 + steps, entries)."""
  dtype = targets['wide'].dtype

  def deltas(factors):
    return {k: f['lora_a'] @ f['lora_b'] for k, f in factors.items()}

  def loss(factors, key):
    total = 0
    for (site, delta), k in zip(
      deltas(factors).items(), jax.random.split(key, 2), strict=True
    ):
      noise = 0.02 * jax.random.normal(k, delta.shape, dtype)
      total += jnp.sum(jnp.square(delta - targets[site] - noise)) / 2
    return total

  def flat(factors):
    return jnp.concatenate([d.reshape(-1) for d in deltas(factors).values()])

  def step(carry, key):
    factors, state = carry
    updates, state = tx.update(jax.grad(loss)(factors, key), state, factors)
    factors = optax.apply_updates(factors, updates)
    return (factors, state), flat(factors)

  keys = jax.random.split(key, steps)
  _, moved = jax.lax.scan(step, (factors, tx.init(factors)), keys)
  return jnp.concatenate([flat(factors)[None], moved])


def distances(tx, dtype, seeds, steps) -> np.ndarray:
  """Distances of paths over their length (starts, kinds, seeds, 1 + steps)."""
  work = [(seed, start) for start in STARTS for seed in range(seeds)]
  factors, targets = jax.tree.map(
    lambda *xs: jnp.asarray(np.stack(xs), dtype), *(starts(*w) for w in work)
  )
  keys = jax.vmap(jax.random.key)(jnp.array([seed for seed, _ in work]))
  one = jax.vmap(lambda *args: path(tx, *args, steps), (0, None, None))
  paths = np.asarray(jax.jit(jax.vmap(one))(factors, targets, keys))
  paths = paths.astype(np.float64)  # (work, 1 + kinds, 1 + steps, entries)
  base = paths[:, :1]
  length = np.linalg.norm(base - base[:, :, :1], axis=-1).max(axis=-1)
  apart = np.linalg.norm(paths[:, 1:] - base, axis=-1) / length[..., None]
  apart = np.nan_to_num(apart, nan=np.inf)
  return apart.reshape(len(STARTS), seeds, *apart.shape[1:]).swapaxes(1, 2)


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=30)
  parser.add_argument('--methods', nargs='+', default=list(METHODS))
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  # Do not optimise: compiling takes longer than these few steps.
  jax.config.update('jax_disable_most_optimizations', True)
  rows = []
  with jax.enable_x64(True):
    for name in tqdm.tqdm(args.methods):
      tx, expected = METHODS[name]
      for dtype in ('float64', 'float32'):
        both = distances(tx, dtype, args.seeds, args.steps)
        for start, apart in zip(STARTS, both, strict=True):
          rows.append(
            {'method': name, 'expected': expected, 'dtype': dtype,
             'start': start, 'largest': apart.max(axis=-1),
             'at_start': apart[..., 0].max(axis=-1),
             'over_steps': np.median(apart[KINDS.index(100)], axis=0)}
          )  # fmt: skip
  results.save_rows(args.out / 'results.jsonl', rows)


if __name__ == '__main__':
  main()
