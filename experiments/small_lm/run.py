"""Makes the runs of the plan that are not in results.jsonl yet.

    python -m experiments.small_lm.run WORK

needs what experiments.small_lm.corpus writes, and weights: those that
experiments.small_lm.pretrain wrote to WORK, else the committed ones. It can be
stopped at any time and started again. Two of them, --part 0/2 and --part 1/2,
share the work.
"""

import argparse
import pathlib
import time

import numpy as np
import tqdm

from experiments import results
from experiments.small_lm import corpus, network, plan
from experiments.small_lm.finetune import finetune

FOLDER = network.FOLDER
# Runs with the weights of another pretraining, on another type of processor.
OTHER_WEIGHTS = FOLDER / 'other_weights.jsonl'
DIGITS = 6


class Bench:
  """Weights and windows, each read once, and their digests."""

  def __init__(self, work: pathlib.Path):
    self.work = work
    self.windows = corpus.load(work)
    self._bases = {}

  def base(self, width: int):
    if width not in self._bases:
      base = network.load_base(self.work, width)
      self._bases[width] = base, network.weights_digest(base)
    return self._bases[width]

  def train(self, setting: plan.Setting, power: int, seed: int) -> dict:
    """Makes a run, and returns its row of the results."""
    base, _ = self.base(setting.width)
    domain, rate = self.windows[setting.domain], plan.rate_of(power)
    started = time.monotonic()
    found = finetune(
      setting, rate, seed, base, domain, self.windows['pretraining'].held_out
    )
    seconds = time.monotonic() - started
    return {
      **setting._asdict(),
      'power': power,
      'rate': rate,
      'seed': seed,
      **found,
      'seconds': round(seconds, 1),
      **self.identity(setting),
    }

  def identity(self, setting: plan.Setting) -> dict[str, str]:
    """Digests of what a run depends on besides the code."""
    return {
      'base': self.base(setting.width)[1],
      'text': corpus.digest(self.windows[setting.domain]),
    }


def check_same(bench: Bench, setting: plan.Setting, rows: list[dict]) -> None:
  """Raises ValueError if earlier rows have other weights or another text."""
  own = bench.identity(setting)
  for row in rows:
    if (row['width'], row['domain']) != (setting.width, setting.domain):
      continue
    for name, value in own.items():
      if row[name] != value:
        raise ValueError(
          f'{bench.work}: {name} is {value}, in the results {row[name]}. '
          'Take the committed weights (a WORK without any), and the Python '
          'that the README names. Give --other_weights to mix them (the report '
          'says so), or '
          '--out for results of their own'
        )


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__.partition('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('work', type=pathlib.Path, metavar='WORK')
  parser.add_argument('--part', default='0/1', help='of the settings: i/n')
  parser.add_argument('--minutes', type=float, default=np.inf)
  parser.add_argument('--methods', nargs='+', help='these alone')
  parser.add_argument('--domains', nargs='+', help='these alone')
  parser.add_argument('--other_weights', action='store_true')
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  part, parts = map(int, args.part.split('/'))
  bench, path = Bench(args.work), args.out / 'results.jsonl'
  end = time.monotonic() + 60 * args.minutes
  earlier = plan.found_of(results.load_rows(OTHER_WEIGHTS))
  for cell in tqdm.tqdm(plan.part_of(plan.cells(), part, parts)):
    setting = cell.setting
    if args.methods and setting.method not in args.methods:
      continue
    if args.domains and setting.domain not in args.domains:
      continue
    while True:
      rows = results.load_rows(path) if path.exists() else []
      found = plan.found_of(rows)
      start = plan.start_near(setting, found, earlier)
      run = plan.next_run(cell, plan.losses(found.get(setting, {})), start)
      if run is None:
        break
      if time.monotonic() > end:
        return
      if not args.other_weights:
        check_same(bench, setting, rows)
      row = bench.train(setting, *run)
      results.append_row(path, row, DIGITS)
      tqdm.tqdm.write(
        f'{" ".join(map(str, setting))}: rate {row["rate"]:.2e}, seed '
        f'{row["seed"]}: {row["loss"]:.4f} ({row["seconds"]:.0f} s)'
      )


if __name__ == '__main__':
  main()
