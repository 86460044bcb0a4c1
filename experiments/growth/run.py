"""Do the time and memory of a training step grow like its work?

Measures a training step of a Llama with random weights, LoRA and AdamW. Its
batch, length, rank, depth or number of adapted projections is varied over about
a decade, while all else stays the same. Powers of the varied size are fitted to
time, to the program's own memory, and to the work itself: the operations of all
matrix products. `--about batch rank` measures only these two.
"""

import argparse
import pathlib
import time

import jax
import numpy as np
import tqdm

import lora_opt
from experiments import drawing, results
from lora_opt.data import forms
from lora_opt.devices.partitioning import DATA_PARALLEL, put
from lora_opt.models import LoraConfig
from lora_opt.models.random_model import random_model
from lora_opt.planning.operations import product_flops
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state

FOLDER = pathlib.Path(__file__).parent
SITES = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
USUAL = {'batch': 4, 'length': 128, 'rank': 16, 'layers': 4, 'sites': 7}
POINTS = {
  'batch': (2, 4, 8, 20),
  'length': (128, 256, 512, 1280),
  'rank': (8, 16, 32, 80),
  'layers': (2, 4, 8, 20),
  'sites': (1, 2, 4, 7),
}
TITLES = {
  'batch': 'rows of a batch',
  'length': 'tokens of a row',
  'rank': 'rank of the adapters',
  'layers': 'layers',
  'sites': 'adapted projections of a layer',
}


def step_of(batch, length, rank, layers, sites):
  """Returns (function that takes a step, compiled step, its product FLOPs)."""
  target = f'.*/({"|".join(SITES[:sites])})'
  model = random_model(
    LoraConfig(target, rank=rank),
    embed_dim=256,
    num_layers=layers,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=768,
    max_length=4096,
  )
  placement, optimizer = DATA_PARALLEL.place(model), lora_opt.adamw(1e-4)
  base = put(model.base, placement.base)
  lora = put(model.init(jax.random.key(0)), placement.trainable)
  state = create_train_state(lora, optimizer, placement)
  train_step = make_train_step(model, optimizer, placement, state)
  rows = forms.empty_batch('decoder', length=length, batch_size=batch)
  tokens = np.random.default_rng(0).integers(256, size=(batch, length))
  rows |= {
    'tokens': tokens.astype(np.int32),
    'targets': np.roll(tokens, -1, 1).astype(np.int32),
    'weights': np.ones((batch, length), np.float32),
    'segment_ids': np.ones((batch, length), np.int32),
    'positions': np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
  }
  rows = placement.put_batch(rows, batch)
  flops = product_flops(jax.make_jaxpr(train_step)(state, base, rows), 'cpu')
  compiled = train_step.lower(state, base, rows).compile()

  def take():
    nonlocal state
    state, metrics = train_step(state, base, rows)
    return float(metrics['loss'])

  return take, compiled, flops


def measure(about: str, repeats: int) -> list[dict]:
  """Measures a row for each point of the varied size; they take turns."""
  steps = []
  for point in POINTS[about]:
    take, compiled, flops = step_of(**USUAL | {about: point})
    take()
    memory = compiled.memory_analysis().temp_size_in_bytes
    steps.append((take, {'about': about, 'point': point, 'flops': flops}))
    steps[-1][1]['bytes'] = memory
  seconds = [[] for _ in steps]
  for _ in tqdm.trange(repeats, desc=about):
    for (take, _), spent in zip(steps, seconds, strict=True):
      began = time.perf_counter()
      take()
      spent.append(time.perf_counter() - began)
  return [
    row | {'seconds': float(np.median(spent))}
    for (_, row), spent in zip(steps, seconds, strict=True)
  ]


def exponent(points, values) -> float:
  """The slope of a straight line through the logarithms.

  >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
  2.0
  """
  return float(np.polyfit(np.log(points), np.log(values), 1)[0])


def series(rows: list[dict], about: str) -> dict[str, list]:
  chosen = [row for row in rows if row['about'] == about]
  names = ('point', 'seconds', 'bytes', 'flops')
  return {name: [row[name] for row in chosen] for name in names}


def table(rows: list[dict]) -> str:
  """A table in Markdown: how time, memory and work grow with each size."""
  lines = []
  for about in dict.fromkeys(row['about'] for row in rows):
    found = series(rows, about)
    first, last = found['point'][0], found['point'][-1]
    powers = (
      f'{exponent(found["point"], found[name]):.2f}'
      for name in ('seconds', 'flops', 'bytes')
    )
    lines.append((TITLES[about], f'{first} to {last}', *powers))
  header = ('what grows', 'from, to', 'time', 'products', 'memory')
  return results.markdown(header, lines)


TICKS = (1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20)


def draw(folder: pathlib.Path) -> None:
  rows = results.load_rows(folder / 'results.jsonl')
  kinds = list(dict.fromkeys(row['about'] for row in rows))
  canvas, axes = drawing.panels(1, len(kinds), 2.6, 2.6)
  for panel, about in zip(axes[0], kinds, strict=True):
    found = series(rows, about)
    for name, colour in zip(
      ('seconds', 'flops', 'bytes'), drawing.COLOURS, strict=False
    ):
      values = np.array(found[name]) / found[name][0]
      label = {'seconds': 'time', 'flops': 'products', 'bytes': 'memory'}[name]
      panel.loglog(found['point'], values, 'o-', color=colour, label=label)
    panel.set_xlabel(TITLES[about], fontsize=8)
    panel.set_xticks(found['point'], map(str, found['point']))
    low, high = panel.get_ylim()
    fine = high < 3  # else their numbers would overlap
    ticks = [t for t in TICKS if low <= t <= high and (fine or t == round(t))]
    panel.set_yticks(ticks, map(str, ticks))
    panel.minorticks_off()
  axes[0, 0].set_ylabel('relative to the first', fontsize=8)
  axes[0, 0].legend(fontsize=7, frameon=False)
  drawing.save(canvas, folder / 'growth.png')


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--about', nargs='+', choices=POINTS, default=[*POINTS])
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  rows = []
  for about in args.about:
    rows += measure(about, args.repeats)
    print(table(rows), flush=True)
  results.save_rows(args.out / 'results.jsonl', rows)
  draw(args.out)


if __name__ == '__main__':
  main()
