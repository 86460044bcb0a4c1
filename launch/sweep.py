#!/usr/bin/env python3
"""Runs a grid of trainings, each in its own numbered folder.

    launch/sweep.py GRID FOLDER [--dry_run] [--hours H] [--jobs N]
    launch/sweep.py GRID FOLDER --slurm [-- SBATCH_OPTION ...]  as a job array

GRID is a JSON file with flags of `python -m lora_opt.main`: "flags" are for
every run, and "grid" has the values of each name. Every combination is run.

    {"flags": ["--gin_file=configs/runs/quickstart.gin"],
     "grid": {"gin.PEAK_LEARNING_RATE": [1e-3, 1e-2],
              "gin.RANDOM_SEED": [0, 1, 2]}}

Instead of "grid", "runs" may list the flags of each run, in the order in which
to run them: [["--gin.A=1", "--gin.B=2"], ...].

When called again, the same command skips the runs that finished (run.json
exists) or diverged (diverged.json exists: the same steps would diverge again)
and continues the others from their newest checkpoints. A combination keeps its
number: values that are added to the grid later get new ones.
"""

import argparse
import itertools
import json
import math
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from checks import alone_in, is_plain, read_json, span, whole, write_text
from jobs import Run, run_all
from processes import ROOT, shown, training_command

# Names of folders have four digits.
MOST_RUNS = 10_000


def read_grid(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
  """Reads the common flags and each run's own; the last name varies fastest.

  Raises:
    ValueError: the file is not such a grid; the message says where.
  """
  read = read_json(path)
  if not isinstance(read, dict) or set(read) not in (
    {'flags', 'grid'},
    {'flags', 'runs'},
  ):
    raise ValueError(
      f'{path}: must be {{"flags": [...], "grid": {{...}}}}, or with "runs": '
      '[[...], ...] in place of the grid'
    )
  flags = _flags(read['flags'], f'{path}: flags')
  if 'runs' in read:
    runs = _listed(path, read['runs'])
  else:
    runs = choices(_grid(path, read['grid']))
    for run in runs:
      _flags(run, f'{path}: grid')
  if len({tuple(run) for run in runs}) < len(runs):
    twice = next(run for run in runs if runs.count(run) > 1)
    raise ValueError(f'{path}: names the same run twice: {shlex.join(twice)}')
  return flags, runs


def _flags(flags: object, what: str) -> list[str]:
  if not isinstance(flags, list):
    raise ValueError(f'{what} must be a list of flags')
  for flag in flags:
    if not is_plain(flag) or not flag.startswith('-'):
      raise ValueError(
        f'{what}: {flag!r:.80} is not a flag such as "--gin.A=1", on one line'
      )
  return flags


def _listed(path: pathlib.Path, runs: object) -> list[list[str]]:
  if not isinstance(runs, list) or not all(isinstance(r, list) for r in runs):
    raise ValueError(f'{path}: runs must be a list of lists of flags')
  return [_flags(run, f'{path}: run {i}') for i, run in enumerate(runs)]


def _grid(path: pathlib.Path, grid: object) -> dict[str, list]:
  if not isinstance(grid, dict):
    raise ValueError(f'{path}: grid must be an object')
  for name, values in grid.items():
    if not re.fullmatch(r'[A-Za-z_][\w./]*', name, re.ASCII):
      raise ValueError(f'{path}: {name!r:.80} is not the name of a flag')
    if not isinstance(values, list) or not values:
      raise ValueError(f'{path}: {name} must be a list of values')
  if (count := math.prod(map(len, grid.values()))) > MOST_RUNS:
    raise ValueError(f'{path}: {count:,} runs, more than {MOST_RUNS:,}')
  return grid


def choices(grid: Mapping[str, Sequence]) -> list[list[str]]:
  """Every combination, as flags; values other than strings by their `repr`.

  >>> choices({'gin.A': [1, 2], 'gin.B': ['x', True]})[:2]
  [['--gin.A=1', '--gin.B=x'], ['--gin.A=1', '--gin.B=True']]
  """
  one = [
    [f'--{name}={x if isinstance(x, str) else repr(x)}' for x in values]
    for name, values in grid.items()
  ]
  return [list(combination) for combination in itertools.product(*one)]


def numbered(folder: pathlib.Path, wanted: list[list[str]]) -> list[list[str]]:
  """All combinations by number: those of runs.json, then the new ones.

  Raises:
    ValueError: runs.json is damaged, or there are more runs than numbers.
  """
  file = folder / 'runs.json'
  known = _listed(file, read_json(file)) if file.exists() else []
  there = set(map(tuple, known))
  everything = known + [new for new in wanted if tuple(new) not in there]
  if len(everything) > MOST_RUNS:
    raise ValueError(
      f'{folder}: {len(everything):,} runs, more than {MOST_RUNS:,}; begin '
      'another folder'
    )
  return everything


def plan(grid: pathlib.Path, folder: pathlib.Path) -> list[Run]:
  """The runs of a sweep, in the order of the grid."""
  flags, wanted = read_grid(grid)
  numbers = {tuple(c): i for i, c in enumerate(numbered(folder, wanted))}
  return [
    Run(folder / f'{numbers[tuple(choice)]:04d}', choice, [*flags, *choice])
    for choice in wanted
  ]


def prepare(folder: pathlib.Path, runs: list[Run]) -> None:
  """Writes which combination each number is, and the flags of each run."""
  choices_by_number = numbered(folder, [run.choice for run in runs])
  text = json.dumps(choices_by_number, indent=1, ensure_ascii=False)
  write_text(folder / 'runs.json', text + '\n')
  for run in runs:
    if run.finished():
      continue
    if run.folder.is_symlink():
      raise OSError(f'{run.folder} is a link, which is not written to')
    run.folder.mkdir(exist_ok=True)
    lines = ''.join(f'{flag}\n' for flag in run.flags)
    write_text(run.folder / 'flags.txt', lines)


def ranges(numbers: Sequence[int]) -> str:
  """Numbers in the form that `sbatch --array` takes.

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
  """Yields the words of a command that submits the runs as a job array."""
  yield from ('env', f'SWEEP={folder}', 'bash')
  yield str(ROOT / 'launch/slurm.sh')
  yield f'--array={ranges([int(run.folder.name) for run in runs])}'
  yield from (*options, '--')


def main(arguments: Sequence[str]) -> int:
  sys.stdout.reconfigure(errors='backslashreplace')  # names may be anything
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('grid', type=pathlib.Path, metavar='GRID')
  parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER')
  parser.add_argument(
    '--slurm', action='store_true', help='submit a SLURM job array'
  )
  parser.add_argument(
    '--hours', type=span, help='stop after so long, to continue later'
  )
  parser.add_argument(
    '--jobs',
    type=whole(1),
    default=1,
    help='runs at a time, each on its share of the cores',
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='only list the runs, and print the commands',
  )
  # Split by hand, since argparse takes positional arguments in one piece only.
  cut = arguments.index('--') if '--' in arguments else len(arguments)
  options = parser.parse_args(arguments[:cut])
  for_sbatch = arguments[cut + 1 :]
  try:
    runs = plan(options.grid, options.folder)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  if options.dry_run:
    _say(runs, options, for_sbatch)
    return 0
  try:
    with alone_in(options.folder):
      # Another sweep may have given numbers meanwhile: they are known only now.
      runs = plan(options.grid, options.folder)
      return _run(runs, options, for_sbatch)
  except (OSError, ValueError) as error:
    parser.error(str(error))


def _waiting(runs: Sequence[Run]) -> list[Run]:
  waiting = [run for run in runs if not run.finished()]
  print(f'{len(runs) - len(waiting)} of {len(runs)} runs are finished')
  return waiting


def _say(runs, options, for_sbatch) -> None:
  waiting = _waiting(runs)
  for run in runs:
    if run.finished():
      print(f'# {run.folder} is finished')
    else:
      settings = {'MODEL_DIR': str(run.folder)}
      print(shown(training_command(run.flags), settings))
  if options.slurm and waiting:
    print(shlex.join(array_command(options.folder, waiting, for_sbatch)))


def _run(runs, options, for_sbatch) -> int:
  waiting = _waiting(runs)
  prepare(options.folder, runs)
  if not waiting:
    return 0
  if options.slurm:
    submission = array_command(options.folder, waiting, for_sbatch)
    return subprocess.run(list(submission), check=False).returncode
  failed, stopped = run_all(waiting, jobs=options.jobs, hours=options.hours)
  done = sum(run.finished() for run in runs)
  print(f'{done} of {len(runs)} runs are finished')
  if done < len(runs) and not failed:
    print('stopped; the same command goes on')
  return 130 if stopped else 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
