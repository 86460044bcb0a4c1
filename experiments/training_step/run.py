"""Is a training step as fast as that of transformers and peft?

SmolLM2-135M-Instruct, LoRA of rank 16 on all projections, AdamW. lora_opt and
transformers + peft + torch take steps in turn, each in a separate process, on
the same dequantised weights. Needs torch, transformers and peft.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

import tqdm

from experiments import results
from experiments.smollm2_torch import smollm2_in_torch
from experiments.training_step import cases
from experiments.training_step.table import table
from experiments.worker import Worker
from lora_opt.models import smollm2_135m

FOLDER = pathlib.Path(__file__).parent
HUGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  add = parser.add_argument
  add('--data_dir', help='folder of NAME/train.jsonl, for real examples')
  add('--tasks', nargs='*', default=['gsm8k'], help='question and answer')
  add('--dtypes', nargs='+', default=['float32', 'bfloat16'])
  add('--rounds', type=int, default=10)
  add('--threads', type=int, default=os.cpu_count(), help="torch's")
  add('--out', type=pathlib.Path, default=FOLDER)
  return parser.parse_args(argv)


def measure(args, model, folder, case, dtype) -> dict:
  """Measures both sides of one case."""
  python, module = sys.executable, 'experiments.training_step.'
  batches = pathlib.Path(folder, f'{case}.npz')
  cases.write_padded_batches(
    batches, case, args.data_dir, model, args.rounds + 2
  )
  ours = [python, '-m', module + 'ours', case, dtype, args.data_dir or '-']
  ours.append(pathlib.Path(folder, 'cache'))
  theirs = [python, '-m', module + 'theirs', folder, batches, dtype]
  theirs.append(args.threads)
  environment = os.environ | HUGE_PAGES
  first = Worker(ours, environment)  # fills the compilation cache
  cold = first.ask('first')
  first.close()
  sides = {
    'lora_opt': Worker(ours, environment),
    'transformers + peft': Worker(theirs, environment),
  }
  start = {name: side.ask('first') for name, side in sides.items()}
  for side in sides.values():
    side.ask('reset')
    side.ask('step')
  steps = {name: [] for name in sides}
  for number in tqdm.trange(args.rounds, desc=f'{case} {dtype}'):
    order = list(sides) if number % 2 else list(sides)[::-1]
    for name in order:
      steps[name].append(sides[name].ask('step'))
  memory = {name: side.ask('peak') for name, side in sides.items()}
  for side in sides.values():
    side.close()
  speeds = {
    name: [s['tokens'] / s['seconds'] for s in made]
    for name, made in steps.items()
  }
  mine, other = speeds.values()
  ratios = [x / y for x, y in zip(mine, other, strict=True)]
  return {
    'case': case,
    'dtype': dtype,
    'tokens_per_second': {k: statistics.median(v) for k, v in speeds.items()},
    'speed_ratio': statistics.median(ratios),
    'quartiles': statistics.quantiles(ratios, n=4)[::2],
    'peak_bytes': memory,
    'seconds_to_first_step': start | {'lora_opt, nothing compiled yet': cold},
  }


def main(argv=None):
  args = parse(argv)
  if args.tasks and not args.data_dir:
    raise SystemExit('--tasks needs --data_dir; or give --tasks alone for none')
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    model = smollm2_135m()
    smollm2_in_torch(model).save_pretrained(folder)
    for case in [cases.PADDED, *args.tasks]:
      for dtype in args.dtypes:
        rows.append(measure(args, model, folder, case, dtype))
        print(table(rows), flush=True)
  results.save_rows(args.out / 'results.jsonl', rows)


if __name__ == '__main__':
  main()
