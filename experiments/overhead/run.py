"""What does each method add to a real training step?

In each round, every method takes one step of the main job (forward, backward,
optimizer) in turn, in one process on the same frozen weights and batches. adamw
takes a step right before or after it: the ratio is to that step, since a shared
machine may be slower half a minute later. The row of adamw compares it with
itself, which shows how ratios vary if nothing differs. Memory is what the
compiler plans for a step: its arguments and its temporary buffers.
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
import time
from collections.abc import Iterator
from typing import Any

import jax
import optax
import tqdm

import lora_opt
from experiments import recipes
from experiments.overhead import report
from experiments.overhead.report import BASELINE, FOLDER
from lora_opt import models
from lora_opt.data import tasks
from lora_opt.devices.partitioning import DATA_PARALLEL, put
from lora_opt.evaluation.evaluate import batch_form
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state

METHODS = (
  *(BASELINE, 'lora_plus', 'reflora_s', 'reflora', 'lora_rite'),
  *('scaled_adamw', 'lora_fa', 'lora_pro', 'lora_muon', 'altlora', 'polora'),
  *('recommended', 'averaged(recommended)', 'lamb', 'muon', 'shampoo'),
)
# (rows of a batch, tokens of a row).
BATCHES = {'smollm2_135m': (4, 256), 'minilm_l6': (16, 64)}


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  add = parser.add_argument
  add('--out', type=pathlib.Path, default=FOLDER, help='of result.json')
  add('--models', nargs='+', default=list(BATCHES), choices=BATCHES)
  add('--methods', nargs='+', default=list(METHODS), choices=METHODS)
  add('--ranks', nargs='+', type=int, default=[16])
  add('--rounds', type=int, default=6)
  args = parser.parse_args(argv)
  if args.rounds < 2:
    parser.error(f'--rounds={args.rounds} must be at least 2, for quartiles')
  return args


def task() -> tasks.Task:
  """Made-up reviews that fill rows; step times do not depend on their words."""
  rng = random.Random(0)
  words = ('the', 'film', 'plot', 'was', 'good', 'bad', 'dull', 'very', 'not')
  rows = [
    {'text': ' '.join(rng.choices(words, k=30)), 'label': i % 2}
    for i in range(512)
  ]
  return tasks.Classification(
    name='made_up',
    train=rows,
    eval=rows[:1],
    prompt='{text}',
    texts=('text',),
    label_names=('bad', 'good'),
    chat=False,
  )


class Runner:
  """Takes the steps of one method."""

  def __init__(self, name: str, model: Any, base: Any, batch: Any):
    placement = DATA_PARALLEL.place(model)
    inner = name.removeprefix('averaged(').removesuffix(')')
    recipe = getattr(recipes if inner == 'recommended' else lora_opt, inner)
    optimizer = recipe(1e-4, other=optax.adamw(1e-4))
    if inner != name:
      optimizer = lora_opt.averaged(optimizer)
    lora = put(model.init(jax.random.key(0)), placement.trainable)
    self.state = create_train_state(lora, optimizer, placement)
    step = make_train_step(model, optimizer, placement, self.state)
    started = time.perf_counter()
    self._step = step.lower(self.state, base, batch).compile()
    self.compile_seconds = time.perf_counter() - started
    self._base = base
    planned = self._step.memory_analysis()
    self.bytes = planned.argument_size_in_bytes + planned.temp_size_in_bytes
    leaves = jax.tree.leaves(self.state.opt_state)
    self.state_bytes = sum(leaf.nbytes for leaf in leaves)

  def __call__(self, batch: Any) -> float:
    """Takes a step; returns its seconds."""
    started = time.perf_counter()
    self.state, metrics = self._step(self.state, self._base, batch)
    jax.block_until_ready((self.state, metrics))
    return time.perf_counter() - started


def batches(model: Any, rows: int, length: int) -> Iterator[Any]:
  """Yields batches on the device, without end."""
  placement = DATA_PARALLEL.place(model)
  made = task().train_batches(
    model.tokenizer,
    length=length,
    batch_size=rows,
    seed=0,
    form=batch_form(model),
  )
  for batch in made:
    yield placement.put_batch(batch, rows)


def measure(args, name: str, rank: int) -> list[dict]:
  """Measures one row per method."""
  lora = models.LoraConfig(rank=rank, alpha=float(2 * rank))
  model = getattr(models, name)(lora=lora)
  base = put(model.base, DATA_PARALLEL.place(model).base)
  feed = batches(model, *BATCHES[name])
  first = next(feed)
  methods = [m for m in args.methods if m != BASELINE]
  runners = {
    method: Runner(method, model, base, first)
    for method in tqdm.tqdm([BASELINE, *methods], f'{name}: compiling')
  }
  for runner in runners.values():
    runner(first)
    runner(first)
  base_runner = runners[BASELINE]
  seconds = collections.defaultdict(list)
  beside = collections.defaultdict(list)
  order = list(runners)
  shuffle = random.Random(0).shuffle
  for number in tqdm.trange(
    args.rounds, desc=f'{name}, rank {rank}: measuring'
  ):
    batch = next(feed)
    shuffle(order)
    for method in order:
      pair = [(runners[method], seconds), (base_runner, beside)]
      for runner, times in pair[:: -1 if number % 2 else 1]:
        times[method].append(runner(batch))
  rows = []
  for method, runner in runners.items():
    ratios = [
      x / y for x, y in zip(seconds[method], beside[method], strict=True)
    ]
    rows.append(
      {
        'model': name,
        'rank': rank,
        'method': method,
        'milliseconds': 1e3 * statistics.median(seconds[method]),
        'ratio': statistics.median(ratios),
        'quartiles': statistics.quantiles(ratios, n=4)[::2],
        'bytes': runner.bytes,
        'memory_ratio': runner.bytes / base_runner.bytes,
        'state_ratio': runner.state_bytes / base_runner.state_bytes,
        'compile_seconds': runner.compile_seconds,
      }
    )
  return rows


def main(argv=None):
  args = parse(argv)
  args.out.mkdir(parents=True, exist_ok=True)
  rows = []
  for name in args.models:
    for rank in args.ranks:
      rows += measure(args, name, rank)
  result = {
    'arguments': sys.argv[1:],
    'rounds': args.rounds,
    'machine': f'{platform.processor() or platform.machine()}, '
    f'{os.cpu_count()} cores',
    'jax': jax.__version__,
    'rows': rows,
  }
  (args.out / 'result.json').write_text(
    json.dumps(result, indent=1), encoding='utf-8'
  )
  print(report.table(rows))
  print(f'{args.out}/result.json')


if __name__ == '__main__':
  main()
