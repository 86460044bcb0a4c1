"""Compares planned and measured memory of training steps on this machine.

    python -m experiments.plan_memory.run [--cases NAME,...] [--tolerance 0.15]

Each case runs in two separate processes. One plans, from shapes alone. The
other makes the arrays, runs the compiled step twice, and reads from Linux the
largest growth of the process's memory since before the first array. The memory
of the interpreter, JAX and the compiled program is in use before, and does not
count.
"""

import argparse
import ctypes
import gc
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

import lora_opt
from lora_opt.data import forms
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, from_folder
from lora_opt.planning.chips import read_topology
from lora_opt.planning.program import Job, Shapes, compile_step, describe
from lora_opt.planning.targets import find_target
from lora_opt.training import host_devices
from lora_opt.training.step import make_train_step

PUBLISHED = pathlib.Path(__file__).parents[2] / 'configs/published'
SMALL = 'smollm2_135m'
# (rows, length, differences from float32 on one device).
CASES = {
  'float32': (4, 256, {}),
  'full remat': (4, 512, {'remat': 'full'}),
  'no remat': (2, 256, {'remat': 'none'}),
  'bfloat16': (4, 256, {'dtype': 'bfloat16'}),
  'nf4 base': (4, 256, {'quantize': 'nf4'}),
  '2 x 2 x 2 devices': (8, 64, {'mesh': (2, 2, 2)}),
}
STEPS = 2


def make_job(rows: int, length: int, mesh=(1, 1, 1), **settings):
  """The job of a case, its placed shapes, and the target of their placement."""
  devices = int(np.prod(mesh))
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', devices)
  host_devices.make_room(devices)
  model = from_folder(
    PUBLISHED / SMALL, lora=LoraConfig(), weights=False, **settings
  )
  batch = forms.empty_batch('decoder', length=length, batch_size=rows)
  job = Job(model, lora_opt.lora_rite(1e-3), batch, {'diagnostics_period': 1})
  target = find_target(read_topology(f'{devices}xcpu'))
  return job, describe(job, Partitioner(*mesh), target.devices), target


def planned(case: str) -> dict[str, float]:
  """Planned bytes of a case, on all devices together."""
  rows, length, settings = CASES[case]
  job, shapes, target = make_job(rows, length, **settings)
  # The plan is for this machine's own compiler, which converts bfloat16.
  program = compile_step(job, shapes, target, native_bfloat16=False)
  held = sum(program.held.values())
  devices = len(target.devices)
  return {'held': held * devices, 'all': program.total * devices}


def measured(case: str) -> dict[str, float]:
  """Growth of the process since before the first array, in bytes."""
  rows, length, settings = CASES[case]
  job, shapes, _ = make_job(rows, length, **settings)
  step = make_train_step(
    job.model, job.optimizer, shapes.placement, shapes.state, **job.settings
  )
  compiled = step.lower(shapes.state, shapes.base, shapes.batch).compile()
  before = resident()
  state, base, batch = fill(shapes)
  held = resident() - before
  pathlib.Path('/proc/self/clear_refs').write_bytes(b'5')  # forget the peak
  for _ in range(STEPS):
    state, metrics = compiled(state, base, batch)
    assert jnp.isfinite(metrics['loss'])
  return {'held': held, 'all': status('VmHWM') - before}


def fill(shapes: Shapes):
  """Makes state, base and batch of small numbers, each in its final place."""

  def array(x):
    def part(index):
      sizes = [len(range(n)[i]) for n, i in zip(x.shape, index, strict=True)]
      return np.full(sizes, 0.01, x.dtype)

    return jax.make_array_from_callback(x.shape, x.sharding, part)

  state, base, batch = jax.tree.map(
    array, (shapes.state, shapes.base, shapes.batch)
  )
  ones = jax.device_put(
    np.ones(batch['weights'].shape, np.float32), batch['weights'].sharding
  )
  return state, base, batch | {'weights': ones}


def resident() -> int:
  """Bytes of this process, after it has given free memory back."""
  gc.collect()
  ctypes.CDLL('libc.so.6').malloc_trim(0)
  return status('VmRSS')


def status(field: str) -> int:
  """A field of /proc/self/status, in bytes."""
  text = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  return 1024 * int(re.search(rf'{field}:\s+(\d+) kB', text)[1])


def in_process(what: str, case: str) -> dict[str, float]:
  """Runs `planned` or `measured` in a separate process."""
  done = subprocess.run(
    [sys.executable, '-m', __spec__.name, f'--{what}', case],
    stdout=subprocess.PIPE,
    encoding='utf-8',
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', default=','.join(CASES))
  parser.add_argument('--tolerance', type=float, default=0.15)
  parser.add_argument('--planned')
  parser.add_argument('--measured')
  flags = parser.parse_args()
  if flags.planned or flags.measured:
    run = planned if flags.planned else measured
    print(json.dumps(run(flags.planned or flags.measured)))
    return
  print('| case | tokens | held: planned, measured | step: planned, measured |')
  print('| --- | --- | --- | --- |')
  worst = 0.0
  for case in flags.cases.split(','):
    plan, real = (in_process(what, case) for what in ('planned', 'measured'))
    rows, length, _ = CASES[case]
    columns = [
      f'{plan[what] / 1e9:.3f} GB, {real[what] / 1e9:.3f} GB '
      f'({plan[what] / real[what] - 1:+.1%})'
      for what in ('held', 'all')
    ]
    print(f'| {case} | {rows} x {length} | {" | ".join(columns)} |', flush=True)
    worst = max(worst, abs(plan['all'] / real['all'] - 1))
  if worst > flags.tolerance:
    sys.exit(f'a plan is {worst:.0%} away from what was measured')


if __name__ == '__main__':
  main()
