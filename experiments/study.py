"""Plans, runs, resumes and reports a comparison of optimizers.

    python -m experiments.study STUDY.json FOLDER [--hours H] [--jobs N]
      [--results FOLDER] [--methods A,B] [--tasks A,B] [--ranks 4] [--dry_run]
      [-- FLAG ...]

STUDY.json names the methods, each with the learning rate around which its sweep
lies, the tasks, ranks and seeds; FLAGs go to every run, such as
--gin.DATA_DIR=data. Every method gets the same number of runs, each of the same
length, in FOLDER/0000 and so on (launch/sweep.py runs them). The order is such
that a study which stops early is a fair one of fewer tasks, seeds or learning
rates: the same command goes on. At every end, what the runs came to is written
to results.jsonl, and the report beside it, in FOLDER or the folder of results.

    {"title": "Which optimizer?",
     "flags": ["--gin_file=experiments/glue/run.gin"],
     "methods": {"adamw": {"flags": ["--gin_file=..."], "rate": 1e-3}},
     "factors": [1, 3, 0.33],
     "tasks": {"cola": ["--gin_file=configs/tasks/cola.gin"]},
     "ranks": [4], "seeds": [0, 1, 2],
     "order": ["rank", "seed", "task"]}

"factors" times "rate" are the learning rates of a method, in the order in which
they are run; a method may have "more" factors, where its best rate turned out
to be at the end of the sweep. "order" is that of the rest, what changes least
first.
"""

import argparse
import itertools
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_opt.evaluation.study import page, rows

ROOT = pathlib.Path(__file__).resolve().parents[1]
_FIELDS = {
  *('title', 'flags', 'methods', 'factors', 'tasks', 'ranks', 'seeds'),
  'order',
}
_ORDERED = ('rank', 'seed', 'task')


def read(path: pathlib.Path) -> dict[str, Any]:
  """A study file.

  Raises:
    ValueError: it is not one; says where and why.
  """
  try:
    study = json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: {error}') from error
  if not isinstance(study, dict) or set(study) != _FIELDS:
    raise ValueError(f'{path}: must hold {", ".join(sorted(_FIELDS))}')
  if sorted(study['order']) != sorted(_ORDERED):
    raise ValueError(f'{path}: order must hold {", ".join(_ORDERED)}')
  for name, method in study['methods'].items():
    if set(method) - {'more'} != {'flags', 'rate'}:
      raise ValueError(f'{path}: method {name} must hold flags and rate')
  return study


def only(
  study: Mapping[str, Any], part: str, wanted: str | None
) -> Mapping[str, Any]:
  """The study with some of its methods, tasks or ranks, named by commas.

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


def plan(study: Mapping[str, Any]) -> Iterator[list[str]]:
  """The flags of each run, in the order in which they are to be run.

  >>> study = {
  ...   'methods': {'a': {'flags': ['-a'], 'rate': 0.1}},
  ...   'factors': [1, 10], 'tasks': {'t': ['-t']}, 'ranks': [4],
  ...   'seeds': [0], 'order': ['rank', 'seed', 'task'],
  ... }
  >>> for flags in plan(study):
  ...   print(*flags)
  -t -a --gin.LORA_RANK=4 --gin.RANDOM_SEED=0 --gin.PEAK_LEARNING_RATE=0.1
  -t -a --gin.LORA_RANK=4 --gin.RANDOM_SEED=0 --gin.PEAK_LEARNING_RATE=1.0
  """
  axes = {'rank': 'ranks', 'seed': 'seeds', 'task': 'tasks'}
  outer = [study[axes[name]] for name in study['order']]
  for place in itertools.product(*outer):
    at = dict(zip(study['order'], place, strict=True))
    methods = study['methods'].values()
    pairs = itertools.product(study['factors'], methods)
    more = [(factor, m) for m in methods for factor in m.get('more', ())]
    for factor, method in [*pairs, *more]:
      rate = float(f'{factor * method["rate"]:.3g}')
      yield [
        *study['tasks'][at['task']],
        *method['flags'],
        f'--gin.LORA_RANK={at["rank"]}',
        f'--gin.RANDOM_SEED={at["seed"]}',
        f'--gin.PEAK_LEARNING_RATE={rate}',
      ]


def main(arguments: Sequence[str]) -> int:
  """Runs what is asked for, and returns how that ended."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('study', type=pathlib.Path, metavar='STUDY.json')
  parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER')
  parser.add_argument('--hours', help='stop then, to go on later')
  parser.add_argument('--jobs', default='1', help='so many runs at once')
  parser.add_argument(
    '--results', type=pathlib.Path, help='for results and report; else FOLDER'
  )
  for part in ('methods', 'tasks', 'ranks'):
    parser.add_argument(f'--{part}', help='only these, separated by commas')
  parser.add_argument('--dry_run', action='store_true', help='list the runs')
  # By hand, since argparse takes positional arguments in one piece only.
  cut = arguments.index('--') if '--' in arguments else len(arguments)
  options = parser.parse_args(arguments[:cut])
  try:
    study = read(options.study)
    for part in ('methods', 'tasks', 'ranks'):
      study = only(study, part, getattr(options, part))
  except (OSError, ValueError) as error:
    parser.error(str(error))
  options.folder.mkdir(parents=True, exist_ok=True)
  grid = options.folder / 'grid.json'
  flags = [*study['flags'], *arguments[cut + 1 :]]
  grid.write_text(json.dumps({'flags': flags, 'runs': list(plan(study))}))
  command = [sys.executable, str(ROOT / 'launch/sweep.py'), str(grid)]
  command += [str(options.folder), f'--jobs={options.jobs}']
  if options.hours:
    command.append(f'--hours={options.hours}')
  if options.dry_run:
    return subprocess.run([*command, '--dry_run'], check=False).returncode
  sweep = subprocess.Popen(command)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: sweep.terminate())
  code = sweep.wait()
  results = options.results or options.folder
  facts = {'title': study['title'], 'rates': len(study['factors'])}
  if rows.collect(options.folder, results, **facts):
    print(f'report: {page.write_study_report(results)}')
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
