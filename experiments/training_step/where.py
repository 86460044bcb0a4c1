"""Where does a training step on a CPU spend its time?

Times some steps of SmolLM2-135M-Instruct on 8 rows of 128 tokens, then traces
some, and puts every operation of the compiled program into one of a few kinds.
Tracing makes steps longer, so a kind's time is its share of a step that was not
traced; `GFLOP/s` is the speed of its products in that time. The peak is the
speed of a product of two 2048 x 2048 matrices.
"""

import argparse
import collections
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lora_opt
from experiments import results
from experiments.training_step import cases
from lora_opt.devices.partitioning import DATA_PARALLEL, put
from lora_opt.models import LoraConfig, smollm2_135m
from lora_opt.planning import hlo
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state

FOLDER = pathlib.Path(__file__).parent
RANK = 16
KINDS = (
  'products with frozen weights', 'products with the vocabulary',
  'products with adapters', 'attention', 'softmax of the vocabulary',
  'stacks of layers', 'optimizer', 'norms, activations, sums',
)  # fmt: skip


class Work(NamedTuple):
  """The kind of an operation, and its FLOPs in one execution."""

  kind: str
  flops: float


def works(text: str, vocabulary: int) -> dict[str, Work]:
  """The operations of a compiled program that a trace may show, by name."""
  _, computations = hlo.parse(text)
  inner = {
    called
    for instructions in computations.values()
    for each in instructions
    if each.opcode == 'fusion'
    for called in hlo.called_by(each)
  }
  return {
    each.name: _work(each, computations, vocabulary)
    for name, instructions in computations.items()
    if name not in inner
    for each in instructions
    if each.opcode not in ('while', 'conditional', 'call', 'tuple')
  }


def _work(each, computations, vocabulary) -> Work:
  parts = [each]
  for called in hlo.called_by(each):
    parts += computations[called]
  dots = [part for part in parts if part.opcode == 'dot']
  flops = sum(map(_flops, dots))
  sizes = {
    size
    for part in dots or [each]
    for shape in (*part.results, *part.operands)
    for size in shape.sizes
  }
  if 'optimizer/' in each.op_name:
    return Work('optimizer', flops)
  if vocabulary in sizes:
    kind = 'products with' if dots else 'softmax of'
    return Work(f'{kind} the vocabulary', flops)
  if dots and max(len(shape.sizes) for shape in dots[0].operands) > 2:
    return Work('attention', flops)
  if dots:
    narrow = RANK in sizes
    of = 'adapters' if narrow else 'frozen weights'
    return Work(f'products with {of}', flops)
  ranks = [len(shape.sizes) for shape in each.results]
  if 'attention' in each.op_name and max(ranks, default=0) > 4:
    return Work('attention', 0)
  if any('dynamic' in part.opcode for part in parts):
    return Work('stacks of layers', 0)
  return Work('norms, activations, sums', 0)


def _flops(dot: hlo.Instruction) -> int:
  axes = dot.attributes.partition('lhs_contracting_dims={')[2].partition('}')[0]
  contracted = [dot.operands[0].sizes[int(axis)] for axis in axes.split(',')]
  return 2 * math.prod(dot.results[0].sizes) * math.prod(contracted)


def peak(dtype: str, size: int = 2048, repeats: int = 9) -> float:
  """Median speed of a product of two square matrices, in FLOP/s."""
  x = jnp.ones((size, size), dtype)

  @jax.jit
  def product(x):
    return jnp.matmul(x, x, preferred_element_type=jnp.float32)

  product(x).block_until_ready()
  seconds = []
  for _ in range(repeats):
    began = time.perf_counter()
    product(x).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return 2 * size**3 / float(np.median(seconds))


def measure(dtype: str, steps: int) -> dict:
  """Measures seconds and FLOPs of a step by kind, and what to compare with."""
  model = smollm2_135m(lora=LoraConfig(rank=RANK, alpha=32.0), dtype=dtype)
  placement, optimizer = DATA_PARALLEL.place(model), lora_opt.adamw(1e-4)
  base = put(model.base, placement.base)
  lora = put(model.init(jax.random.key(0)), placement.trainable)
  state = create_train_state(lora, optimizer, placement)
  step = make_train_step(model, optimizer, placement, state)
  batch = next(cases.packed_batches(cases.PADDED, '-', model))
  batch = placement.put_batch(batch, cases.ROWS)
  text = step.lower(state, base, batch).compile().as_text()
  known = works(text, model.config.vocab_size)
  state, _ = jax.block_until_ready(step(state, base, batch))
  seconds = []
  for _ in range(steps):
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, base, batch))
    seconds.append(time.perf_counter() - began)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        state, _ = jax.block_until_ready(step(state, base, batch))
    found = collections.Counter(), collections.Counter()
    for name, spent in _events(folder, known):
      found[0][known[name].kind] += spent / steps
      found[1][known[name].kind] += known[name].flops / steps
  return {
    'dtype': dtype,
    'peak': peak(dtype),
    'step': float(np.median(seconds)),
    'useful': useful_flops(model.config, cases.ROWS, cases.LENGTH),
    'seconds': dict(found[0]),
    'flops': dict(found[1]),
  }


def _events(folder: str, known) -> Iterator[tuple[str, float]]:
  (trace,) = pathlib.Path(folder).glob('plugins/profile/*/*.xplane.pb')
  data = jax.profiler.ProfileData.from_file(str(trace))
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        if event.name in known:
          yield event.name, event.duration_ns * 1e-9


def useful_flops(config, rows: int, length: int) -> float:
  """The FLOPs that a step needs at least: nothing is computed twice.

  Frozen weights count once in the forward pass and once for the gradients of
  the activations. Adapters count once more for their own gradients. Of
  attention, only the visible half counts.
  """
  tokens = rows * length
  inside = [
    sizes for path, sizes in config.projections.items() if 'layers/' in path
  ]
  frozen = config.num_layers * sum(a * b for a, b in inside)
  pairs = config.num_layers * RANK * sum(a + b for a, b in inside)
  head = config.vocab_size * config.embed_dim
  width = config.num_heads * config.head_dim
  seen = config.num_layers * width * length / 2
  return 2.0 * tokens * (2 * (frozen + head) + 3 * pairs + 3 * 2 * seen)


def table(row: dict) -> str:
  """Returns the table in Markdown."""
  total = sum(row['seconds'].values())
  lines = []
  for kind in KINDS:
    spent, flops = row['seconds'].get(kind, 0), row['flops'].get(kind, 0)
    # Tracing slows all kinds alike: each has its share of an untraced step.
    untraced = spent / total * row['step']
    speed = f'{flops / untraced / 1e9:.0f}' if flops else ''
    lines.append((kind, f'{100 * spent / total:.0f} %', speed))
  used = row['useful'] / row['step']
  share, peak_speed = 100 * used / row['peak'], row['peak'] / 1e9
  sums = (
    f'a step takes {row["step"]:.2f} s: {used / 1e9:.0f} GFLOP/s of useful '
    f'products, {share:.0f} % of the {peak_speed:.0f} of 2048² matrices'
  )
  header = (row['dtype'], 'share of the time', 'GFLOP/s')
  return f'{results.markdown(header, lines)}\n\n{row["dtype"]}: {sums}.'


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  rows = []
  for dtype in args.dtypes:
    rows.append(measure(dtype, args.steps))
    print(table(rows[-1]), end='\n\n', flush=True)
  results.save_rows(args.out / 'where.jsonl', rows)


if __name__ == '__main__':
  main()
