"""Plans, runs, resumes and reports a comparison of optimizers.

    python -m experiments.study STUDY.json FOLDER [--hours H] [--jobs N]
      [--results FOLDER] [--methods A,B] [--tasks A,B] [--ranks 4] [--dry_run]
      [-- FLAG ...]

STUDY.json lists the methods, each with the learning rate around which it is
swept, and the tasks, ranks and seeds. FLAGs are passed to every run, such as
--gin.DATA_DIR=data. launch/sweep.py makes the runs in FOLDER/0000 and so on:

    {"title": "Which optimizer?",
     "flags": ["--gin_file=experiments/glue/run.gin"],
     "methods": {"adamw": {"flags": ["--gin_file=..."], "rate": 1e-3}},
     "factors": [0.316, 1, 3.16], "widen": 2,
     "tasks": {"cola": ["--gin_file=configs/tasks/cola.gin"]},
     "ranks": [4], "seeds": [0, 1, 2], "sweep_seeds": 1}

The learning rates of a method are "factors" times "rate". All of them are run
with the first "sweep_seeds" of the seeds. If the best rate is at an end of the
sweep, one more rate beyond that end is run, or a lower one if all diverged, up
to "widen" times. The best rate is then run with the other seeds. The study goes
rank by rank and task by task: if it stops early, it is a fair study of fewer
tasks.

Whenever the study stops, the results of its runs are written to results.jsonl,
and the report beside it, in FOLDER or the folder of results. The same command
continues, without the runs that have results: FOLDER may be deleted, or be on
another machine. Delete results.jsonl to start over, for example if runs are now
defined differently.
"""

import argparse
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_opt import writing
from lora_opt.evaluation.study import page, ranking, rows
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

ROOT = pathlib.Path(__file__).resolve().parents[1]
_FIELDS = {
  *('title', 'flags', 'methods', 'factors', 'widen'),
  *('tasks', 'ranks', 'seeds', 'sweep_seeds'),
}
Flags = tuple[str, ...]
Row = Mapping[str, Any]


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads a study file.

  Raises:
    ValueError: the file is not a study; the message says where and why.
  """
  study = read_json(path)
  if set(study) != _FIELDS:
    raise ValueError(f'{path}: must hold {", ".join(sorted(_FIELDS))}')
  _check_kinds(study, path)
  if not study['factors'] or study['factors'] != sorted(study['factors']):
    raise ValueError(f'{path}: factors must be one or more, ascending')
  if study['widen'] and len(study['factors']) < 2:
    raise ValueError(f'{path}: one factor is not a sweep: widen must be 0')
  if not 1 <= study['sweep_seeds'] <= len(study['seeds']):
    raise ValueError(f'{path}: sweep_seeds must be 1 to the number of seeds')
  for name, method in study['methods'].items():
    if set(method) != {'flags', 'rate'}:
      raise ValueError(f'{path}: method {name} must hold flags and rate')
    _check_flags(method['flags'], f'{path}: method {name}: flags')
    values.number(method['rate'], f'{path}: method {name}: rate', above=0)
  return study


def _check_kinds(study: Mapping[str, Any], path: pathlib.Path) -> None:
  values.text(study['title'], f'{path}: title')
  _check_flags(study['flags'], f'{path}: flags')
  for factor in values.items(study['factors'], f'{path}: factors'):
    values.number(factor, f'{path}: factors', above=0)
  for name, flags in values.table(study['tasks'], f'{path}: tasks').items():
    _check_flags(flags, f'{path}: task {name}')
  for name, method in values.table(
    study['methods'], f'{path}: methods'
  ).items():
    values.table(method, f'{path}: method {name}')
  for name in ('ranks', 'seeds'):
    for number in values.items(study[name], f'{path}: {name}'):
      values.integer(number, f'{path}: {name}', least=0)
  for name in ('widen', 'sweep_seeds'):
    values.integer(study[name], f'{path}: {name}', least=0, most=1000)


def _check_flags(flags: Any, what: str) -> None:
  for flag in values.items(flags, what):
    if not values.text(flag, what).startswith('-') or not flag.isprintable():
      raise ValueError(
        f'{what}: {values.shown(flag)} is not a flag on one line'
      )


def only(
  study: Mapping[str, Any], part: str, wanted: str | None
) -> Mapping[str, Any]:
  """The study with only some methods, tasks or ranks, separated by commas.

  >>> only({'ranks': [4, 16]}, 'ranks', '16')
  {'ranks': [16]}
  """
  if wanted is None:
    return study
  names = wanted.split(',')
  there = study[part]
  unknown = set(names) - set(map(str, there))
  if unknown:
    raise ValueError(f'no such {part}: {", ".join(sorted(unknown))}')
  if isinstance(there, Mapping):
    kept = {name: there[name] for name in there if name in names}
  else:
    kept = [value for value in there if str(value) in names]
  return {**study, part: kept}


def blocks(study: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
  """Pairs of rank and task, in the order in which they are run."""
  return itertools.product(study['ranks'], study['tasks'])


def plan(
  study: Mapping[str, Any],
  block: tuple[int, str],
  method: str,
  known: Mapping[Flags, Row],
) -> list[Flags | None]:
  """The runs of a method in a block; None for each run that is still undecided.

  Args:
    study: as `read` returns it.
    block: rank and task.
    method: name of the method.
    known: rows of the runs that have ended, by flags.
  """
  rank, task = block
  recipe = study['methods'][method]

  def run(rate: float, seed: int) -> Flags:
    return (
      *study['tasks'][task],
      *recipe['flags'],
      f'--gin.LORA_RANK={rank}',
      f'--gin.RANDOM_SEED={seed}',
      f'--gin.PEAK_LEARNING_RATE={rate}',
    )

  count = study['sweep_seeds']
  swept, others = study['seeds'][:count], study['seeds'][count:]
  factors = list(study['factors'])
  for left in range(study['widen'], -1, -1):
    rates = [_three_digits(factor * recipe['rate']) for factor in factors]
    sweep = [run(rate, seed) for seed in swept for rate in rates]
    if any(flags not in known for flags in sweep):
      return [*sweep, *[None] * len(others)]
    repeats = [run(rate, seed) for seed in others for rate in rates]
    found = [known[flags] for flags in [*sweep, *repeats] if flags in known]
    best = ranking.choose(found, swept)
    if left and (best is None or best.at_edge):
      lower = best is None or best.learning_rate == rates[0]
      factors = _longer(factors, at_start=lower)
    elif best is None:
      return sweep
    else:
      break
  return [*sweep, *(run(best.learning_rate, seed) for seed in others)]


def _longer(factors: list[float], at_start: bool) -> list[float]:
  if at_start:
    return [factors[0] ** 2 / factors[1], *factors]
  return [*factors, factors[-1] ** 2 / factors[-2]]


def _three_digits(rate: float) -> float:
  return float(f'{rate:.3g}')


def ready(
  study: Mapping[str, Any], known: Mapping[Flags, Row]
) -> Iterator[list[Flags]]:
  """Yields the runs of each unfinished block that can be started now."""
  for block in blocks(study):
    wanted = [
      flags
      for method in study['methods']
      for flags in plan(study, block, method, known)
      if flags is not None and flags not in known
    ]
    if wanted:
      yield wanted


def count_runs(study: Mapping[str, Any], known: Mapping[Flags, Row]) -> int:
  """The number of runs of the study, as far as its sweeps are known."""
  places = itertools.product(blocks(study), study['methods'])
  return sum(len(plan(study, *place, known)) for place in places)


class Sweep:
  """Runs launch/sweep.py as a process; a signal to this process stops it."""

  def __init__(self, folder: pathlib.Path, flags: Sequence[str], jobs: str):
    """Prepares runs in `folder`, `jobs` of them at once, each with `flags`."""
    self._folder, self._flags, self._jobs = folder, list(flags), jobs
    self._process: subprocess.Popen | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._stop)

  def run(self, runs: Sequence[Flags], *options: str) -> int:
    """Makes these runs, and returns the exit code."""
    grid = self._folder / 'grid.json'
    writing.write_text(grid, json.dumps({'flags': self._flags, 'runs': runs}))
    command = [sys.executable, str(ROOT / 'launch/sweep.py'), str(grid)]
    command += [str(self._folder), f'--jobs={self._jobs}', *options]
    self._process = subprocess.Popen(command)
    return self._process.wait()

  def _stop(self, number: int, _: object) -> None:
    if self._process is None:
      raise SystemExit(128 + number)
    self._process.terminate()


def _arguments() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('study', type=pathlib.Path, metavar='STUDY.json')
  parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER')
  parser.add_argument(
    '--hours', type=float, help='stop after so long, to continue later'
  )
  parser.add_argument('--jobs', default='1', help='runs at a time')
  parser.add_argument(
    '--results',
    type=pathlib.Path,
    help='folder of results and report; else FOLDER',
  )
  for part in ('methods', 'tasks', 'ranks'):
    parser.add_argument(f'--{part}', help='only these, separated by commas')
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='only list what can be run now, and write it to FOLDER/grid.json',
  )
  return parser


def _collect(
  study: Mapping[str, Any], folder: pathlib.Path, results: pathlib.Path
) -> dict[Flags, Row]:
  """Rows of all runs that have ended, by flags; written if there are runs."""
  if not (folder / 'runs.json').exists():
    return rows.by_flags(rows.read_rows(results))
  known = rows.by_flags(rows.collect(folder, results))
  rows.write_facts(
    results,
    title=study['title'],
    rates=len(study['factors']),
    runs=count_runs(study, known),
  )
  return known


def main(arguments: Sequence[str]) -> int:
  """Runs the command line, and returns the exit code."""
  parser = _arguments()
  # Split by hand, since argparse takes positional arguments in one piece only.
  cut = arguments.index('--') if '--' in arguments else len(arguments)
  options = parser.parse_args(arguments[:cut])
  try:
    whole = study = read(options.study)
    for part in ('methods', 'tasks', 'ranks'):
      study = only(study, part, getattr(options, part))
  except (OSError, ValueError) as error:
    parser.error(str(error))
  results = options.results or options.folder
  flags = [*study['flags'], *arguments[cut + 1 :]]
  sweep = Sweep(options.folder, flags, options.jobs)
  known = _collect(whole, options.folder, results)
  if options.dry_run:
    runs = list(itertools.chain.from_iterable(ready(study, known)))
    return sweep.run(runs, '--dry_run')
  start, code = time.monotonic(), 0
  while not code and (runs := next(ready(study, known), None)):
    print(f'{len(known)} of {count_runs(whole, known)} runs have ended')
    limits = []
    if options.hours is not None:
      left = options.hours - (time.monotonic() - start) / 3600
      limits = [f'--hours={max(left, 0.0)}']
    code = sweep.run(runs, *limits)
    known = _collect(whole, options.folder, results)
    if any(run not in known for run in runs):
      break
  if known:
    print(f'report: {page.write_study_report(results)}')
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
