"""What does an optimizer step cost, compared with optax.adamw?

In each round, every method takes one step, in random order. (The
authors' PyTorch code has separate processes, which wait while others work.)
Ratios are to optax.adamw on the stacked tree in the same round.
"""

import argparse
import collections
import json
import os
import pathlib
import platform
import random
import statistics
import sys

import jax
import optax
import tqdm

import lora_opt
from experiments.optimizer_step.draw import draw, table
from experiments.optimizer_step.runners import JaxRunner, TorchRunner
from experiments.optimizer_step.trees import SHAPES, make_gradients, make_tree
from experiments.recipes import RECIPES, recommended

BASELINE = 'optax.adamw'


def methods(rate: float) -> dict[str, optax.GradientTransformation]:
  """Every recipe with its defaults."""
  txs = {BASELINE: optax.adamw(rate)}
  txs |= {name: make(rate) for name, make in RECIPES.items() if name != 'sgd'}
  txs['recommended'] = recommended(rate)
  txs['lora_rite, low memory'] = lora_opt.lora_rite(rate, low_memory=True)
  return txs


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  add = parser.add_argument
  add('--out', default='runs/optimizer_step', help='folder of the results')
  add('--trees', nargs='+', default=list(SHAPES), choices=SHAPES)
  add(
    '--layouts',
    nargs='+',
    default=['stacked', 'separate'],
    choices=['stacked', 'separate'],
    help='one leaf for all layers, or one per layer',
  )
  add('--rank', type=int, default=16)
  add('--rounds', type=int, default=15)
  add('--methods', nargs='+', help='names of the table; all by default')
  add('--torch_python', help='a Python with torch (and peft, for RefLoRA)')
  add('--lora_rite_code', help="checkout of the authors' LoRA-RITE")
  add('--reflora_code', help="checkout of the authors' RefLoRA")
  args = parser.parse_args(argv)
  unknown = set(args.methods or ()) - set(methods(1e-4))
  if unknown:
    parser.error(f'--methods {sorted(unknown)}: choose from {[*methods(1e-4)]}')
  if (args.lora_rite_code or args.reflora_code) and not args.torch_python:
    parser.error("the authors' code needs --torch_python")
  for path in (args.torch_python, args.lora_rite_code, args.reflora_code):
    if path and not pathlib.Path(path).exists():
      parser.error(f'{path} does not exist')
  return args


def torch_runners(args, tree: str) -> dict[str, TorchRunner]:
  if not args.torch_python:
    return {}
  wanted = {
    'torch AdamW, fused': ('adamw', '-'),
    "authors' LoRA-RITE, torch": ('lora_rite', args.lora_rite_code),
    "authors' RefLoRA, torch": ('reflora', args.reflora_code),
  }
  layers, shapes = SHAPES[tree]
  numbers = [str(layers), str(args.rank)]
  numbers += [f'{fan_in},{fan_out}' for fan_in, fan_out in shapes.values()]
  worker = ['-m', 'experiments.optimizer_step.torch_worker']
  return {
    name: TorchRunner([args.torch_python, *worker, method, path, *numbers])
    for name, (method, path) in wanted.items()
    if path
  }


def measure(args, tree: str, layout: str) -> list[dict]:
  txs = methods(1e-4)
  if args.methods:
    txs = {k: v for k, v in txs.items() if k in {BASELINE, *args.methods}}
  params = make_tree(tree, args.rank, layout, seed=0)
  gradients = make_gradients(tree, args.rank, layout)
  runners = {}
  for name, tx in tqdm.tqdm(txs.items(), f'{tree} {layout}: compiling'):
    runners[name] = JaxRunner(tx, params, gradients)
  if layout != 'stacked':
    # All ratios are to the stacked one; the other one stays in the table.
    runners[f'{BASELINE}, separate'] = runners.pop(BASELINE)
    stacked = make_tree(tree, args.rank, 'stacked', seed=0)
    runners[BASELINE] = JaxRunner(
      txs[BASELINE], stacked, make_gradients(tree, args.rank, 'stacked')
    )
  others = torch_runners(args, tree) if layout == 'stacked' else {}
  runners |= others
  seconds = collections.defaultdict(list)
  for runner in runners.values():
    runner()
    runner()
  # In random order, so that nobody always follows the same neighbour.
  order, shuffle = list(runners), random.Random(0).shuffle
  for _ in tqdm.trange(args.rounds, desc=f'{tree} {layout}: measuring'):
    shuffle(order)
    for name in order:
      seconds[name].append(runners[name]())
  for runner in others.values():
    runner.close()
  base = runners[BASELINE]
  rows = []
  for name, runner in runners.items():
    ratios = [
      x / y for x, y in zip(seconds[name], seconds[BASELINE], strict=True)
    ]
    state = runner.state_bytes
    rows.append(
      {
        'tree': tree,
        'layout': layout,
        'rank': args.rank,
        'method': name,
        'milliseconds': 1e3 * statistics.median(seconds[name]),
        'ratio': statistics.median(ratios),
        'quartiles': statistics.quantiles(ratios, n=4)[::2],
        'compile_seconds': runner.compile_seconds,
        'state_bytes': state,
        'state_ratio': state / base.state_bytes,
      }
    )
  return rows


def main(argv=None):
  args = parse(argv)
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  rows = []
  for tree in args.trees:
    for layout in args.layouts:
      rows += measure(args, tree, layout)
  result = {
    'arguments': sys.argv[1:],
    'rounds': args.rounds,
    'machine': f'{platform.processor() or platform.machine()}, '
    f'{os.cpu_count()} cores',
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'optax': optax.__version__,
    'rows': rows,
  }
  (out / 'result.json').write_text(
    json.dumps(result, indent=1), encoding='utf-8'
  )
  (out / 'table.md').write_text(table(rows), encoding='utf-8')
  draw(rows, out / 'optimizer_step.png')
  print(table(rows))
  print(f'{out}/result.json, {out}/table.md, {out}/optimizer_step.png')


if __name__ == '__main__':
  main()
