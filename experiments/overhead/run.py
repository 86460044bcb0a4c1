"""What does each method add to a real training step?

Every method takes one step of the main job (forward, backward, optimizer) in
turn, round after round, in one process on the same frozen weights and batches,
and adamw takes one right before or after it: the ratio is to that step, since
a shared machine may be slower half a minute later. The row of adamw is itself
beside itself: what ratios come to where nothing differs. Memory is what the
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
from lora_opt import models
from lora_opt.data import tasks
from lora_opt.evaluation import drawing
from lora_opt.evaluation.evaluate import batch_form
from lora_opt.training.partitioning import DATA_PARALLEL, put
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state

BASELINE = 'adamw'
METHODS = (
  *(BASELINE, 'lora_plus', 'reflora_s', 'reflora', 'lora_rite'),
  *('scaled_adamw', 'lora_fa', 'lora_pro', 'lora_muon', 'altlora'),
  *('lamb', 'muon', 'shampoo'),
)
# Rows of a batch and tokens of a row.
BATCHES = {'smollm2_135m': (4, 256), 'minilm_l6': (16, 64)}
# Iterations a second and MB, of the RefLoRA paper; 5 to 8 % over Adam is what
# the LoRA-RITE paper says of itself.
PUBLISHED = {
  'adamw': (2.26, 8732),
  'lora_pro': (1.36, 8866),
  'lora_rite': (1.64, 8872),
  'reflora': (2.00, 8864),
  'reflora_s': (2.23, 8732),
}


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  add = parser.add_argument
  add('--out', type=pathlib.Path, default=pathlib.Path('runs/overhead'))
  add('--models', nargs='+', default=list(BATCHES), choices=BATCHES)
  add('--methods', nargs='+', default=list(METHODS), choices=METHODS)
  add('--ranks', nargs='+', type=int, default=[16])
  add('--rounds', type=int, default=6)
  return parser.parse_args(argv)


def task() -> tasks.Task:
  """Made-up reviews, long enough to fill rows: the step does not read them."""
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
  """Steps of one method."""

  def __init__(self, name: str, model: Any, base: Any, batch: Any):
    placement = DATA_PARALLEL.place(model)
    recipe = getattr(lora_opt, name)
    optimizer = recipe(1e-4, other=optax.adamw(1e-4))
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
  """Placed on the device, without end."""
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
  """One row a method."""
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


def table(rows: list[dict]) -> str:
  """Markdown, one table a model and rank, with the published ratios."""
  text = []
  for name, rank in dict.fromkeys((r['model'], r['rank']) for r in rows):
    text += [
      f'\n{name}, rank {rank}\n',
      '| method | time of a step / adamw | ms | memory / adamw | MiB '
      '| state / adamw | compile s | published: time | memory |',
      '|' + ' --- |' * 9,
    ]
    for row in rows:
      if (row['model'], row['rank']) == (name, rank):
        text.append(_line(row))
  return '\n'.join(text) + '\n'


def _line(row: dict) -> str:
  low, high = row['quartiles']
  published = ' |  |'
  if row['method'] in PUBLISHED:
    speed, megabytes = PUBLISHED[row['method']]
    best, least = PUBLISHED[BASELINE]
    published = f' {best / speed:.2f} | {megabytes / least:.3f} |'
  return (
    f'| {row["method"]} | {row["ratio"]:.3f} [{low:.3f}, {high:.3f}] '
    f'| {row["milliseconds"]:.0f} | {row["memory_ratio"]:.3f} '
    f'| {row["bytes"] / 2**20:.0f} | {row["state_ratio"]:.2f} '
    f'| {row["compile_seconds"]:.1f} |{published}'
  )


def picture(rows: list[dict], path: pathlib.Path) -> None:
  """Ratios with quartiles, a panel for each model and rank."""

  def bars(chosen):
    def draw(axes, ink):
      drawing.plain(axes, ink)
      heights = range(len(chosen))[::-1]
      for height, row in zip(heights, chosen, strict=True):
        axes.plot(row['quartiles'], [height] * 2, color=ink.accent, alpha=0.4,
                  linewidth=5, solid_capstyle='round')  # fmt: skip
        axes.plot([row['ratio']], [height], 'o', color=ink.accent)
        if row['method'] in PUBLISHED:
          speed = PUBLISHED[row['method']][0]
          there = PUBLISHED[BASELINE][0] / speed
          axes.plot([there], [height], 'd', color=ink.second)
      axes.set_xlabel(
        'time of a step / adamw (diamonds: published, RefLoRA paper)'
      )
      axes.set_yticks(heights, [row['method'] for row in chosen])
      axes.grid(axis='y', visible=False)
      axes.grid(axis='x', color=ink.line, linewidth=0.7)

    return draw

  keys = dict.fromkeys((row['model'], row['rank']) for row in rows)
  draws = {
    f'{name}, rank {rank}': bars(
      [r for r in rows if (r['model'], r['rank']) == (name, rank)]
    )
    for name, rank in keys
  }
  drawing.to_png(draws, (6.0, 0.8 + 0.28 * len(METHODS)), path)


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
  (args.out / 'result.json').write_text(json.dumps(result, indent=1))
  (args.out / 'table.md').write_text(table(rows))
  picture(rows, args.out / 'result.png')
  print(table(rows))
  print(f'{args.out}/result.json, table.md, result.png')


if __name__ == '__main__':
  main()
