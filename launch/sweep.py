#!/usr/bin/env python3
"""Runs a grid of trainings, each in a numbered folder of its own.

    launch/sweep.py GRID FOLDER [--dry_run] [--hours H] [--jobs N]
    launch/sweep.py GRID FOLDER --slurm [-- SBATCH_OPTION ...]  as a job array

GRID is a JSON file of flags of `python -m lora_opt.main`: those of every run,
and for each name in "grid" the values that it takes; every combination is run.

    {"flags": ["--gin_file=configs/runs/quickstart.gin"],
     "grid": {"gin.PEAK_LEARNING_RATE": [1e-3, 1e-2],
              "gin.RANDOM_SEED": [0, 1, 2]}}

In place of "grid", "runs" may name the flags of each run, in the order in which
they are to be run: [["--gin.A=1", "--gin.B=2"], ...].

The same command again skips the runs that are finished (run.json is there) or
diverged (diverged.json: the same steps would diverge again) and goes on with
the others from their newest checkpoints. A combination keeps its number: values
that are added to the grid later get new ones.
"""

import argparse
import itertools
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from jobs import Run, run_all
from processes import ROOT, shown, training_command


def read_grid(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
  """The flags of every run, and those of each; the last name varies first.

  Raises:
    ValueError: not such a file; says where.
  """
  try:
    read = json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: {error}') from error
  if not isinstance(read, dict) or set(read) not in (
    {'flags', 'grid'},
    {'flags', 'runs'},
  ):
    raise ValueError(
      f'{path}: must be {{"flags": [...], "grid": {{...}}}}, or with "runs": '
      '[[...], ...] in place of the grid'
    )
  flags = read['flags']
  if not isinstance(flags, list):
    raise ValueError(f'{path}: flags must be a list')
  if 'runs' in read:
    return flags, _listed(path, read['runs'])
  if not isinstance(read['grid'], dict):
    raise ValueError(f'{path}: grid must be an object')
  for name, values in read['grid'].items():
    if not isinstance(values, list) or not values:
      raise ValueError(f'{path}: {name} must be a list of values')
  return flags, choices(read['grid'])


def _listed(path: pathlib.Path, runs: object) -> list[list[str]]:
  lists = isinstance(runs, list) and all(isinstance(run, list) for run in runs)
  if not lists:
    raise ValueError(f'{path}: runs must be a list of lists of flags')
  if len({tuple(run) for run in runs}) < len(runs):
    raise ValueError(f'{path}: runs names the same run twice')
  return runs


def choices(grid: Mapping[str, Sequence]) -> list[list[str]]:
  """Every combination, as flags; values as Python writes them.

  >>> choices({'gin.A': [1, 2], 'gin.B': ['x', True]})[:2]
  [['--gin.A=1', '--gin.B=x'], ['--gin.A=1', '--gin.B=True']]
  """
  one = [
    [f'--{name}={x if isinstance(x, str) else repr(x)}' for x in values]
    for name, values in grid.items()
  ]
  return [list(combination) for combination in itertools.product(*one)]


def numbered(folder: pathlib.Path, wanted: list[list[str]]) -> list[list[str]]:
  """All combinations by number: those of runs.json, then what is new."""
  file = folder / 'runs.json'
  known = json.loads(file.read_text(encoding='utf-8')) if file.exists() else []
  return known + [choice for choice in wanted if choice not in known]


def plan(grid: pathlib.Path, folder: pathlib.Path) -> list[Run]:
  """The runs of a sweep, in the order of the grid."""
  flags, wanted = read_grid(grid)
  numbers = {tuple(c): i for i, c in enumerate(numbered(folder, wanted))}
  return [
    Run(folder / f'{numbers[tuple(choice)]:04d}', choice, [*flags, *choice])
    for choice in wanted
  ]


def prepare(folder: pathlib.Path, runs: list[Run]) -> None:
  """Writes what a run's number stands for, and the flags of each run."""
  folder.mkdir(parents=True, exist_ok=True)
  part = folder / 'runs.json.part'
  choices_by_number = numbered(folder, [run.choice for run in runs])
  part.write_text(
    json.dumps(choices_by_number, indent=1) + '\n', encoding='utf-8'
  )
  part.rename(folder / 'runs.json')
  for run in runs:
    if run.finished():
      continue
    run.folder.mkdir(exist_ok=True)
    (run.folder / 'flags.txt').write_text(
      ''.join(f'{flag}\n' for flag in run.flags), encoding='utf-8'
    )


def ranges(numbers: Sequence[int]) -> str:
  """As `sbatch --array` takes them.

  >>> ranges([0, 1, 2, 5, 7, 8])
  '0-2,5,7-8'
  """
  groups: list[list[int]] = []
  for index in sorted(numbers):
    if groups and index == groups[-1][1] + 1:
      groups[-1][1] = index
    else:
      groups.append([index, index])
  return ','.join(f'{a}-{b}' if b > a else f'{a}' for a, b in groups)


def array_command(
  folder: pathlib.Path, runs: Sequence[Run], options: Sequence[str]
) -> Iterator[str]:
  """What submits the runs as a job array."""
  yield from ('env', f'SWEEP={folder}', 'bash')
  yield str(ROOT / 'launch/slurm.sh')
  yield f'--array={ranges([int(run.folder.name) for run in runs])}'
  yield from (*options, '--')


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('grid', type=pathlib.Path, metavar='GRID')
  parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER')
  parser.add_argument('--slurm', action='store_true', help='as a job array')
  parser.add_argument('--hours', type=float, help='stop then, to go on later')
  parser.add_argument(
    '--jobs', type=int, default=1, help='so many at once, each on its cores'
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='only list the runs, and print the commands',
  )
  # By hand, since argparse takes positional arguments in one piece only.
  cut = arguments.index('--') if '--' in arguments else len(arguments)
  options = parser.parse_args(arguments[:cut])
  if options.jobs < 1:
    parser.error('--jobs must be at least 1')
  for_sbatch = arguments[cut + 1 :]
  try:
    runs = plan(options.grid, options.folder)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  waiting = [run for run in runs if not run.finished()]
  print(f'{len(runs) - len(waiting)} of {len(runs)} runs are finished')
  submission = list(array_command(options.folder, waiting, for_sbatch))
  if options.dry_run:
    for run in runs:
      if run.finished():
        print(f'# {run.folder} is finished')
      else:
        settings = {'MODEL_DIR': str(run.folder)}
        print(shown(training_command(run.flags), settings))
    if options.slurm and waiting:
      print(shlex.join(submission))
    return 0
  prepare(options.folder, runs)
  if not waiting:
    return 0
  if options.slurm:
    return subprocess.run(submission, check=False).returncode
  failed, stopped = run_all(waiting, jobs=options.jobs, hours=options.hours)
  done = sum(run.finished() for run in runs)
  print(f'{done} of {len(runs)} runs are finished')
  if done < len(runs) and not failed:
    print('stopped; the same command goes on')
  return 130 if stopped else 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
