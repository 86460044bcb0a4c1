"""Measures processor time of a step, alone and with several runs by vmap.

    python -m experiments.small_lm.speed WORK

does it for the methods of the first comparison. It is processor time and not
elapsed time, so that other programs may run at the same time.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments import results
from experiments.small_lm import corpus, network, plan
from experiments.small_lm.finetune import CHUNK, programs, rate_table

REPEATS = 3


def seconds_a_step(advance, start, *arguments) -> float:
  """The minimum over REPEATS calls, after one that compiles."""
  carry, _ = jax.block_until_ready(advance(start(), *arguments))
  taken = []
  for _ in range(REPEATS):
    before = time.process_time()
    carry, _ = jax.block_until_ready(advance(carry, *arguments))
    taken.append(time.process_time() - before)
  return min(taken) / CHUNK


def measure(
  setting: plan.Setting, base, windows: np.ndarray, lanes: int
) -> tuple[float, float]:
  """Seconds of a step of one run: alone, and as one of `lanes` by vmap."""
  start, advance, _ = programs(
    setting.method, setting.width, setting.rank, setting.alpha
  )
  table = jnp.asarray(rate_table('constant', 1000, 1e-3))
  random = np.random.default_rng(0)
  rows = random.integers(len(windows), size=(lanes, CHUNK, setting.batch))
  batches = jnp.asarray(windows[rows])
  alone = seconds_a_step(
    advance, lambda: start(base, 0, table), base, table, batches[0]
  )
  together = jax.jit(
    jax.vmap(advance, in_axes=(0, None, 0, 0)), donate_argnums=0
  )
  tables, seeds = jnp.stack([table] * lanes), jnp.arange(lanes)
  starts = jax.vmap(start, in_axes=(None, 0, 0))
  many = seconds_a_step(
    together, lambda: starts(base, seeds, tables), base, tables, batches
  )
  return alone, many / lanes


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__.partition('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('work', type=pathlib.Path, metavar='WORK')
  parser.add_argument('--methods', nargs='+', default=plan.CORE)
  parser.add_argument('--batches', nargs='+', type=int, default=[8])
  parser.add_argument('--lanes', type=int, default=4)
  args = parser.parse_args(argv)
  base = network.load_base(args.work, 128)
  windows = corpus.load(args.work)['gsm8k'].train
  lines = []
  for method in args.methods:
    for batch in args.batches:
      setting = plan.Setting(method, batch=batch)
      taken = measure(setting, base, windows, args.lanes)
      lines.append((method, batch, *(f'{x:.3f}' for x in taken)))
      print(lines[-1], flush=True)
  header = ('method', 'batch', 'one by one', f'{args.lanes} in one program')
  print(results.markdown(header, lines))


if __name__ == '__main__':
  main()
