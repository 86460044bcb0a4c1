"""Peak memory of a training step, by the length of its row.

    python -m experiments.attention_memory.run [--chips v5e,h100]

Two layers of SmolLM2-360M (its shapes, no weights) in bfloat16, LoRA on every
projection, one row on one chip. They are compiled by the chip's own compiler,
which needs no chip: `pip install ".[plan-tpu,plan-gpu]" -c constraints.txt`.
Each line of results.jsonl is a compiled step; existing ones are skipped.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp

import lora_opt
from experiments import drawing
from lora_opt.data import forms
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, causal_lm, from_folder
from lora_opt.planning import plan
from lora_opt.planning.chips import read_topology
from lora_opt.planning.program import (
  DoesNotFitError,
  Job,
  compile_step,
  describe,
)
from lora_opt.planning.targets import find_target

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parents[1] / 'configs/published/smollm2_360m'
LENGTHS = (2048, 8192, 32768, 131072)
WAYS = ('auto', 'plain')


def make_model(attention: str):
  """A model of two layers, as shapes."""
  model = from_folder(
    MODEL, lora=LoraConfig(), weights=False, dtype='bfloat16', remat='full'
  )
  config = dataclasses.replace(model.config, num_layers=2)
  base = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    causal_lm.abstract_base(config),
  )
  return dataclasses.replace(
    model, config=config, base=base, attention=attention
  )


def measure(chip: str, attention: str, length: int) -> dict:
  """Compiles a step; returns its bytes, with a peak of None if too large."""
  target = find_target(
    read_topology(f'1x{chip}' if chip == 'h100' else f'{chip}-1')
  )
  assert target.real, f'the compiler of {chip} is not installed'
  batch = forms.empty_batch('decoder', length=length, batch_size=1)
  job = Job(make_model(attention), lora_opt.adamw(1e-3), batch, {})
  shapes = describe(job, Partitioner(), target.devices)
  found = {'chip': chip, 'attention': attention, 'length': length}
  try:
    program = compile_step(job, shapes, target)
  except DoesNotFitError:
    return found | {'peak': None}
  return found | {'peak': program.peak, 'held': sum(program.held.values())}


def draw(results: list[dict]) -> None:
  """Plots peak memory by length, with a panel for each chip."""
  chips = sorted({each['chip'] for each in results}, reverse=True)
  canvas, axes = drawing.panels(1, len(chips), 4.5, 3.5, sharey=True)
  for ax, chip in zip(axes.flat, chips, strict=True):
    for way, colour in zip(WAYS, drawing.COLOURS, strict=False):
      points = [
        (each['length'], each['peak'] / 1e9)
        for each in results
        if (each['chip'], each['attention']) == (chip, way) and each['peak']
      ]
      x, y = zip(*sorted(points), strict=True)
      ax.plot(x, y, marker='o', label=way, color=colour)
    ax.set(xscale='log', yscale='log', title=chip, xlabel='tokens in a row')
    ax.set_xticks(LENGTHS, [f'{length // 1024}k' for length in LENGTHS])
    ax.yaxis.set_major_formatter('{x:g}')
    ax.set_ylabel('GB at the peak')
    ax.legend()
  drawing.save(canvas, HERE / 'memory.png')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--chips', default='v5e,h100')
  plan.simulate('cpu')
  file = HERE / 'results.jsonl'
  lines = file.read_text(encoding='utf-8').splitlines() if file.exists() else []
  results = [json.loads(line) for line in lines]
  done = {(r['chip'], r['attention'], r['length']) for r in results}
  for chip in parser.parse_args().chips.split(','):
    for length in LENGTHS:
      for way in WAYS:
        if (chip, way, length) in done:
          continue
        results.append(measure(chip, way, length))
        print(json.dumps(results[-1]), flush=True)
        with file.open('a', encoding='utf-8') as out:
          out.write(json.dumps(results[-1]) + '\n')
  draw(results)


if __name__ == '__main__':
  main()
