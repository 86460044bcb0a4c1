#!/usr/bin/env python3
"""Runs all checks that need a GPU, and records their results.

    launch/gpu_check.py [--out=runs/gpu_check] [--steps NAME ...] [--dry_run]

installs the project into .venv with jax[cuda13] (2.5 GB, once), and then runs
these steps one after the other:

    quickstart      the quickstart, on the GPU
    optimizer_step  step times of every recipe, relative to optax.adamw
    golden_lapack   the authors' trajectories, in float64, with r x r work by
                    LAPACK-like calls
    golden_products the same, with r x r work by products
    accuracy        tests of r x r work and of attention, on the GPU
    plans           tests that use the GPU compiler, on the host

OUT/NAME.log has the output of each step; OUT/result.json and OUT/result.md have
times, figures and versions. If a step fails, this is recorded and the others
still run.

    PYTHON=program  this Python has everything already: nothing is installed
    PLATFORM=cpu    the same steps, but smaller, on a machine without a GPU
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from checks import write_text
from processes import ROOT, shown

# NVIDIA's first driver for CUDA 13.
LEAST_DRIVER = 580
# Prints a Python's devices and the versions that matter, as JSON.
_ABOUT = """
import importlib.metadata, json, jax
names = {'jax', 'jaxlib', 'jax-cuda13-plugin', 'optax', 'nvidia-cudnn-cu13'}
found = importlib.metadata.distributions()
versions = {d.metadata['Name'].lower(): d.version for d in found}
print(json.dumps({
  'device': ', '.join(sorted({d.device_kind for d in jax.devices()})),
  'versions': {k: v for k, v in sorted(versions.items()) if k in names},
}))
"""


class Step(NamedTuple):
  """One step of the check.

  Attributes:
    command: The command, which is run in the project's root.
    settings: Environment variables that it needs.
    read: Finds its figures, from the folder of results and its output.
  """

  command: Sequence[str]
  settings: dict[str, str]
  read: Callable[[pathlib.Path, str], dict[str, Any]]


class MissingError(Exception):
  """A requirement of the steps is not met, so they cannot start."""


def steps(python: str, out: pathlib.Path, small: bool) -> dict[str, Step]:
  """Name -> step; if `small`, steps for a machine without a GPU."""
  platform = {'JAX_PLATFORMS': 'cpu' if small else 'cuda,cpu'}
  # Products are as accurate as tests written for CPUs expect. One process runs
  # at a time, since each takes most of the GPU's memory.
  tests = platform | {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
  pytest = [python, '-m', 'pytest', '-n0', '-p', 'no:cacheprovider', '-m', '']
  few = {
    'quickstart': ['--gin.TRAIN_STEPS=2', '--gin.EVAL_EXAMPLES=2'],
    'optimizer_step': [
      *('--trees', 'smollm2_135m', '--layouts', 'stacked', '--rounds', '2'),
      *('--methods', 'adamw', 'reflora_s'),
    ],
  }
  if not small:
    few = {name: [] for name in few}
  return {
    'quickstart': Step(
      [
        *(python, '-m', 'lora_opt.main', '--run_mode=train'),
        '--gin_file=configs/runs/quickstart.gin',
        f'--gin.MODEL_DIR={str(out / "quickstart")!r}',
        *few['quickstart'],
      ],
      platform,
      _read_quickstart,
    ),
    'optimizer_step': Step(
      [
        *(python, '-m', 'experiments.optimizer_step.run'),
        *('--out', str(out / 'optimizer_step'), *few['optimizer_step']),
      ],
      platform,
      _read_optimizer_step,
    ),
    **{
      f'golden_{method}': Step(
        [
          *(python, '-m', 'tests.golden_replay', 'tests/golden'),
          f'--method={method}',
        ],
        platform,
        _read_golden,
      )
      for method in ('lapack', 'products')
    },
    'accuracy': Step(
      [*pytest, 'tests/core/linalg_test.py', 'tests/models/attend_test.py'],
      tests,
      _read_pytest,
    ),
    'plans': Step(
      [*pytest, '-k', 'gpu', 'tests/planning'],
      {'JAX_PLATFORMS': 'cpu'},
      _read_pytest,
    ),
  }


def _nothing(out: pathlib.Path, said: str) -> dict[str, Any]:
  del out, said
  return {}


def _read_quickstart(out: pathlib.Path, said: str) -> dict[str, Any]:
  run = json.loads((out / 'quickstart/run.json').read_text(encoding='utf-8'))
  speeds = re.findall(r'([\d,.]+) tokens/s', said)
  return {
    'steps': run['steps'],
    'training_seconds': round(run['seconds'], 1),
    'last_tokens_per_second': speeds[-1] if speeds else '',
    **{
      f'score_{moment}': float(score)
      for moment, score in re.findall(
        r'(before|after) training: score ([\d.]+)', said
      )
    },
  }


def _read_optimizer_step(out: pathlib.Path, said: str) -> dict[str, Any]:
  del said
  path = out / 'optimizer_step/result.json'
  rows = json.loads(path.read_text(encoding='utf-8'))['rows']
  return {'methods': len(rows), 'table': 'optimizer_step/table.md'}


def _read_golden(out: pathlib.Path, said: str) -> dict[str, Any]:
  del out
  errors = re.findall(r'\.npz +([\d.]+e[+-]\d+|nan|inf)', said)
  worst = max((float(error) for error in errors), default=None)
  return {'trajectories': len(errors), 'largest_relative_error': worst}


def _read_pytest(out: pathlib.Path, said: str) -> dict[str, Any]:
  del out
  counts = re.findall(r'(\d+) (passed|failed|skipped|errors?)\b', said)
  return {what.removesuffix('s'): int(count) for count, what in counts}


def find_gpus() -> list[str]:
  """Name, driver and memory of each GPU.

  Raises:
    MissingError: There is no GPU, or its driver is too old.
  """
  program = shutil.which('nvidia-smi')
  without = 'PLATFORM=cpu tries the same steps without a GPU'
  if program is None:
    raise MissingError(
      'there is no nvidia-smi: this machine has no NVIDIA GPU, or no driver '
      f'for it; {without}'
    )
  query = '--query-gpu=name,driver_version,memory.total'
  asked = subprocess.run(
    [program, query, '--format=csv,noheader'],
    capture_output=True,
    encoding='utf-8',
    errors='replace',
  )
  gpus = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
  if asked.returncode or not gpus:
    said = (asked.stdout + asked.stderr).strip() or 'it said nothing'
    raise MissingError(f'nvidia-smi finds no GPU: {said}; {without}')
  driver = re.match(r'[^,]*, *(\d+)', gpus[0])
  if driver and int(driver[1]) < LEAST_DRIVER:
    raise MissingError(
      f'{gpus[0]}: the driver is too old for CUDA 13: install {LEAST_DRIVER} '
      'or a newer one'
    )
  return gpus


def about(python: str, small: bool) -> dict[str, Any]:
  """JAX's name of the device, and package versions.

  Raises:
    MissingError: JAX finds no such device.
  """
  platform = 'cpu' if small else 'cuda'
  asked = subprocess.run(
    [python, '-c', _ABOUT],
    capture_output=True,
    encoding='utf-8',
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': platform},
  )
  if asked.returncode:
    last = (asked.stderr.strip().splitlines() or ['it said nothing'])[-1]
    raise MissingError(
      f'{python}: JAX finds no device of the platform {platform}: {last}; '
      'without PYTHON, jax[cuda13] is installed into .venv'
    )
  return json.loads(asked.stdout)


def run_step(step: Step, log: pathlib.Path, out: pathlib.Path) -> dict:
  """Runs a step to its end and reads its figures."""
  start = time.monotonic()
  done = subprocess.run(
    step.command,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    stdin=subprocess.DEVNULL,
    cwd=ROOT,
    env=os.environ | step.settings,
    encoding='utf-8',
    errors='replace',
  )
  seconds = round(time.monotonic() - start, 1)
  write_text(log, done.stdout)
  passed = done.returncode == 0
  try:
    figures = step.read(out, done.stdout)
  except (OSError, ValueError, KeyError) as error:
    passed, figures = False, {'unread': f'{type(error).__name__}: {error}'}
  return {
    'command': shown(step.command, step.settings),
    'passed': passed,
    'seconds': seconds,
    'figures': figures,
  }


def as_text(result: dict, out: pathlib.Path) -> str:
  """The report in Markdown."""
  lines = [
    f'# {result["device"]}, {result["when"]}',
    '',
    *(f'- {gpu}' for gpu in result['gpus']),
    *(f'- {name} {number}' for name, number in result['versions'].items()),
    '',
    '| step | | seconds | |',
    '| --- | --- | ---: | --- |',
  ]
  for name, found in result['steps'].items():
    figures = found['figures'].items()
    said = ', '.join(
      f'{key.replace("_", " ")} {value}' for key, value in figures
    )
    how = 'passed' if found['passed'] else f'FAILED, see {name}.log'
    lines.append(f'| {name} | {how} | {found["seconds"]} | {said} |')
  table = out / 'optimizer_step/table.md'
  if result['steps'].get('optimizer_step', {}).get('passed'):
    lines += ['', '## Optimizer steps', table.read_text(encoding='utf-8')]
  return '\n'.join(lines) + '\n'


def dry_run(chosen: dict[str, Step], setup: Step | None, small: bool) -> int:
  """Prints the commands, and whether this machine could run them."""
  try:
    for gpu in [] if small else find_gpus():
      print(f'# {gpu}')
  except MissingError as error:
    print(f'# here it would end at once: {error}')
  for step in [*([setup] if setup else []), *chosen.values()]:
    print(shown(step.command, step.settings))
  return 0


def run_all(chosen: dict[str, Step], result: dict, out: pathlib.Path) -> int:
  """Runs all steps; writes the results so far after each."""
  for name, step in chosen.items():
    print(f'gpu_check: {name} ...', flush=True)
    found = run_step(step, out / f'{name}.log', out)
    result['steps'][name] = found
    how = 'passed' if found['passed'] else f'FAILED, see {out}/{name}.log'
    print(f'gpu_check: {name} {how}, {found["seconds"]} s', flush=True)
    write_text(out / 'result.json', json.dumps(result, indent=1) + '\n')
    write_text(out / 'result.md', as_text(result, out))
  print(f'gpu_check: {out}/result.md, {out}/result.json')
  return int(not all(found['passed'] for found in result['steps'].values()))


def parse(arguments: Sequence[str], names: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  folder = ROOT / 'runs/gpu_check'
  add('--out', type=pathlib.Path, default=folder, help='a new folder')
  add('--steps', nargs='+', choices=names, default=names)
  add(
    *('--dry_run', '--dry-run'),
    action='store_true',
    help='only print the commands',
  )
  options = parser.parse_args(arguments)
  options.out = options.out.resolve()
  return options


def main(arguments: Sequence[str]) -> int:
  platform = os.environ.get('PLATFORM', 'gpu')
  if platform not in ('gpu', 'cpu'):
    said = f'gpu_check: PLATFORM={platform} is neither gpu nor cpu'
    print(said, file=sys.stderr)
    return 2
  small, given = platform == 'cpu', os.environ.get('PYTHON')
  python = str(ROOT / '.venv/bin/python')
  if given:  # relative to the current folder; steps run in the project's root
    python = os.path.abspath(shutil.which(given) or given)
  options = parse(arguments, list(steps(python, ROOT, small)))
  out, every = options.out, steps(python, options.out, small)
  chosen = {name: every[name] for name in options.steps}
  extra = {'WITH_GPU' if small else 'WITH_CUDA': '1'}
  setup = None if given else Step(['bash', 'launch/setup.sh'], extra, _nothing)
  if options.dry_run:
    return dry_run(chosen, setup, small)
  try:
    gpus = [] if small else find_gpus()
    if out.exists() and any(out.iterdir()):
      raise MissingError(f'{out} is not empty: --out names a new folder')
    if setup:
      environment = os.environ | setup.settings
      subprocess.run(setup.command, env=environment, cwd=ROOT, check=True)
    result = about(python, small)
  except MissingError as error:
    print(f'gpu_check: {error}', file=sys.stderr)
    return 2
  out.mkdir(parents=True, exist_ok=True)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  result |= {'gpus': gpus, 'when': now, 'small': small, 'steps': {}}
  return run_all(chosen, result, out)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
