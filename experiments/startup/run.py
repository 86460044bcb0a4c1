"""How long does it take from the command to the first training step?

Starts the main job repeatedly on the task of the quickstart, without an
evaluation before training, and reads from its metrics when the first and the
second step ended. The first start has an empty compilation cache, later ones
have that of the runs before. In turn with it, a plain script with transformers,
peft and torch trains the same model. Needs these three packages; --alone does
without.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import tqdm

from experiments import results
from experiments.startup.table import table
from experiments.training_step import cases
from experiments.worker import Worker
from lora_opt.models import smollm2_135m

FOLDER = pathlib.Path(__file__).parent
BINDINGS = {
  'TRAIN_STEPS': 3, 'CHECKPOINT_PERIOD': 3, 'EVAL_EXAMPLES': 1,
  'EVAL_BATCH_SIZE': 1, 'MAX_NEW_TOKENS': 1,
  'loop.train.evaluate_before': False,
}  # fmt: skip


def start(folder: pathlib.Path, environment) -> dict[str, float]:
  """Seconds from the command to the end of the first step, and of the next."""
  command = [
    sys.executable, '-m', 'lora_opt.main', '--run_mode=train',
    '--gin_file=configs/runs/quickstart.gin',
    f"--gin.MODEL_DIR='{folder}'",
    *(f'--gin.{name}={value}' for name, value in BINDINGS.items()),
  ]  # fmt: skip
  began = time.time()
  subprocess.run(command, capture_output=True, env=environment, check=True)
  lines = (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
  rows = map(json.loads, lines)
  ends = [row['time'] for row in rows if row['split'] == 'train']
  return {'first': ends[0] - began, 'step': ends[1] - ends[0]}


def measure(args, folder: pathlib.Path) -> list[dict]:
  """Measures a cold start, then warm starts in turn with the peer."""
  environment = os.environ | {
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
  }
  numbers = iter(range(100))

  def ours():
    return start(folder / f'run_{next(numbers)}', environment)

  rows = [{'who': 'cold', **ours()}]
  warm, peer = [], []
  theirs = None if args.alone else _peer(folder)
  for _ in tqdm.trange(args.rounds):
    warm.append(ours())
    if theirs:
      worker = Worker(theirs, environment)
      peer.append({'first': worker.ask('first'), 'step': _step(worker)})
      worker.close()
  rows.append({'who': 'warm', **_median(warm)})
  return [*rows, *([{'who': 'peer', **_median(peer)}] if peer else [])]


def _peer(folder: pathlib.Path) -> list[str]:
  """The command of a process that trains on batches of the same size."""
  from experiments.smollm2_torch import smollm2_in_torch

  model = smollm2_135m()
  smollm2_in_torch(model).save_pretrained(folder / 'torch')
  batches = folder / 'batches.npz'
  cases.write_padded_batches(batches, cases.PADDED, None, model, 3)
  module = 'experiments.training_step.theirs'
  options = [str(folder / 'torch'), str(batches), 'float32', '2']
  return [sys.executable, '-m', module, *options]


def _step(worker: Worker) -> float:
  return worker.ask('step')['seconds']


def _median(rows: list[dict]) -> dict[str, float]:
  names = rows[0]
  return {name: statistics.median(row[name] for row in rows) for name in names}


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--alone', action='store_true', help='without torch')
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    rows = measure(args, pathlib.Path(folder))
  print(table(rows))
  results.save_rows(args.out / 'results.jsonl', rows)


if __name__ == '__main__':
  main()
