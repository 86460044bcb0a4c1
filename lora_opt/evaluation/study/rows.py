"""Collects the result of each run of a study in a row small enough to commit.

A row contains what was chosen for the run (the `flags` that a sweep gave it;
and from its settings `model`, `method`, `options`, `task`, `rank`,
`learning_rate`, `seed`, `budget`), its scores (`metric`, `score`, `interval`,
`lower_is_better`, `halves`, `loss`, `num_examples`; or `diverged`), and how it
went (`curve`, `seconds`, `step_seconds`, `peak_memory_bytes`, `diagnostics`,
`pairs`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_opt import diagnostics
from lora_opt.evaluation import history
from lora_opt.evaluation._text import Json, number
from lora_opt.evaluation.metrics import LOWER
from lora_opt.evaluation.results import write_lines
from lora_opt.reading import values
from lora_opt.reading.json_text import parse_json, read_json
from lora_opt.reading.literals import read_literal
from lora_opt.run_folder import run_files
from lora_opt.run_folder.run_directory import write_json

ROWS_FILE = 'results.jsonl'
FACTS_FILE = 'facts.json'
_CURVE_POINTS = 40
# Settings that must be equal for methods to be compared.
_BUDGET = (
  *('MODEL', 'TRAIN_STEPS', 'BATCH_SIZE', 'TASK_FEATURE_LENGTHS'),
  *('LORA_ALPHA', 'TRAIN_EXAMPLES', 'EVAL_EXAMPLES', 'MAX_NEW_TOKENS'),
)
_ADAPTER = 'adapter/adapter_model.safetensors'


def collect(runs: Path, results: Path | None = None) -> list[Json]:
  """Writes a row for each run that has ended.

  Rows of runs that no longer exist are kept. A run is identified by the flags
  that a sweep gave it, or by its number if there was no sweep.

  Args:
    runs: the folder of a sweep, which contains 0000, 0001, ...
    results: the folder to write results.jsonl to, and facts.json with `runs`
      and `versions`; by default `runs`.

  Returns:
    All rows, sorted by flags.
  """
  results = results or runs
  known = by_flags(read_rows(results))
  flags = _flags(runs / 'runs.json')
  for folder in sorted(runs.glob('[0-9]' * 4)):
    number = int(folder.name)
    said = flags[number] if number < len(flags) else [folder.name]
    if tuple(said) in known:
      continue
    row = read_run(folder)
    if row is not None:
      known[tuple(said)] = {'flags': said} | row
  rows = [known[key] for key in sorted(known)]
  write_lines(results / ROWS_FILE, rows)
  before = read_facts(results)
  versions = {*before.get('versions', ()), *_versions(runs)}
  planned = max(before.get('runs', 0), len(flags), len(rows))
  write_facts(results, runs=planned, versions=sorted(versions))
  return rows


def by_flags(rows: Sequence[Json]) -> dict[tuple[str, ...], Json]:
  """Rows by their flags, which identify the runs."""
  return {tuple(row['flags']): row for row in rows}


def write_facts(folder: Path, **facts: Any) -> None:
  """Writes facts about the study next to its rows, keeping earlier ones.

  Args:
    folder: the folder of results.jsonl.
    **facts: `title`, `rates` (the planned number of learning rates for each
      method), `runs` (the planned number of runs), `versions`.
  """
  write_json(folder / FACTS_FILE, read_facts(folder) | facts)


def read_facts(folder: Path) -> Json:
  """Reads the facts that `write_facts` wrote; empty if there is no file."""
  path = folder / FACTS_FILE
  facts = run_files.if_there(read_json, path) or {}
  for name in ('runs', 'rates'):
    if name in facts:
      values.integer(facts[name], f'{path}: {name}', least=0, most=2**31)
  if 'title' in facts:
    values.text(facts['title'], f'{path}: title')
  for version in values.items(facts.get('versions', []), f'{path}: versions'):
    values.text(version, f'{path}: versions')
  return facts


def _flags(path: Path) -> list[list[str]]:
  """The flags of a sweep's runs, by number; empty if there was no sweep."""
  if not path.exists():
    return []
  found = read_json(path, kind=list)
  for flags in found:
    for flag in values.items(flags, str(path)):
      values.text(flag, str(path))
  return found


def _versions(runs: Path) -> set[str]:
  """The package versions that the runs used."""
  found = map(run_files.read_run, runs.glob('*/run.json'))
  lists = (sorted(run['versions'].items()) for run in found)
  said = {', '.join(f'{n} {v}' for n, v in names) for names in lists}
  return said - {''}


def read_rows(folder: Path) -> list[Json]:
  """The rows that `collect` wrote to a folder; none if there is no file."""
  path = folder / ROWS_FILE
  if not path.exists():
    return []
  with path.open('rb') as lines:
    return [
      _read_row(line, f'{path} line {number}')
      for number, line in enumerate(lines, start=1)
    ]


def _read_row(line: bytes, place: str) -> Json:
  row = values.table(parse_json(line, place), place)
  for flag in values.items(row.get('flags'), f'{place}: flags'):
    values.text(flag, f'{place}: flags')
  return row


def read_run(folder: Path) -> Json | None:
  """The row of one run, or None if it has not ended."""
  read = run_files.if_there
  run = read(run_files.read_run, folder / 'run.json')
  diverged = read(run_files.read_divergence, folder / 'diverged.json')
  settings = read(run_files.read_settings, folder / 'settings.json')
  if settings is None or (run is None and diverged is None):
    return None
  data = read(run_files.read_data, folder / 'dataset.json') or {}
  row = {
    'model': (run or {}).get('model'),
    'task': (run or data).get('task'),
    **_choice(settings),
  }
  if run is None:
    return row | {'diverged': diverged['error'], **_curve(folder)}
  after = (
    read(run_files.read_evaluation, folder / 'evaluation/after.json') or {}
  )
  scored = ('metric', 'score', 'interval', LOWER, 'halves', 'loss')
  scored += ('num_examples',)
  found = {name: after[name] for name in scored if name in after}
  return {
    **row,
    **found,
    **_curve(folder),
    'seconds': round(run['seconds'], 1),
    'peak_memory_bytes': run['peak_memory_bytes'],
    'pairs': _pairs(folder / _ADAPTER),
  }


def _choice(settings: Mapping[str, str]) -> dict[str, Any]:
  """The settings that were chosen for a run."""
  method, options = _method(settings)
  budget = {name: settings[name] for name in _BUDGET if name in settings}
  return {
    'method': method,
    'options': options,
    'rank': _value(settings.get('LORA_RANK')),
    'learning_rate': _value(settings.get('PEAK_LEARNING_RATE')),
    'seed': _value(settings.get('RANDOM_SEED')),
    'budget': budget,
  }


def _method(settings: Mapping[str, str]) -> tuple[str, dict[str, str]]:
  """The name of a run's recipe, and the options of it and of nested recipes.

  >>> _method({'OPTIMIZER': '@lora_opt.adamw()', 'lora_opt.adamw.b2': '0.9'})
  ('adamw', {'adamw.b2': '0.9'})
  >>> _method({'OPTIMIZER': '@lora_opt.adamw()',
  ...          'WHOLE_OPTIMIZER': '@lora_opt.averaged()',
  ...          'lora_opt.averaged.power': '4'})
  ('averaged(adamw)', {'averaged.power': '4'})
  """
  name = _function(settings.get('OPTIMIZER', ''))
  options: dict[str, str] = {}
  names = [name]
  whole = settings.get('WHOLE_OPTIMIZER', '')
  if whole.startswith('@'):
    names.append(_function(whole))
    name = f'{names[-1]}({name})'
  for recipe in names:
    for setting, value in settings.items():
      if not setting.startswith(f'lora_opt.{recipe}.'):
        continue
      inner = re.fullmatch(r'@lora_opt\.(\w+)\(\)', value)
      if inner and inner[1] not in names:
        names.append(inner[1])
      if inner or value[:1] not in ('@', '%'):
        options[setting.removeprefix('lora_opt.')] = value
  return name, options


def _function(value: str) -> str:
  """The bare name of the function in '@module.function()'."""
  return value.strip('@()').rpartition('.')[2]


def _value(text: str | None) -> Any:
  """A setting as a Python value, or its text if it is not a literal."""
  try:
    return None if text is None else read_literal(text)
  except ValueError:
    return text


def _curve(folder: Path) -> dict[str, Any]:
  """Loss over the steps, seconds per step, and last state of the factors."""
  train = [
    row
    for row in history.read_metrics(folder)
    if row.get('split') == 'train' and number(row.get('loss')) is not None
  ]
  if not train:
    return {}
  size = math.ceil(len(train) / _CURVE_POINTS)
  parts = [train[start : start + size] for start in range(0, len(train), size)]
  rates = [
    row['timing/steps_per_second']
    for row in train
    if number(row.get('timing/steps_per_second'))
  ]
  last = {k: v for k, v in train[-1].items() if k.startswith('lora/')}
  return {
    'curve': {
      'step': [part[-1]['step'] for part in parts],
      'loss': [_short(np.mean([row['loss'] for row in p])) for p in parts],
    },
    'step_seconds': _short(1 / np.median(rates)) if rates else None,
    'diagnostics': {
      name.removeprefix('lora/'): _short(value)
      for name, value in last.items()
      if number(value) is not None
    },
  }


def _pairs(path: Path) -> dict[str, dict[str, list[float]]]:
  """Stable rank and condition of a PEFT adapter's pairs, by site and layer.

  >>> _pairs(Path('nowhere'))
  {}
  """
  if not path.exists():
    return {}
  from safetensors.numpy import load_file  # not needed to read rows

  found = diagnostics.diagnose(load_file(path))
  table: dict[str, dict[str, list[float]]] = {}
  for name in sorted(found, key=_by_layer):
    site = re.sub(r'^.*?\.\d+\.|\.lora$', '', name)
    for what in ('stable_rank', 'condition'):
      value = _short(np.mean(getattr(found[name], what)), digits=3)
      table.setdefault(what, {}).setdefault(site, []).append(value)
  return table


def _by_layer(name: str) -> tuple[int, str]:
  layer = re.search(r'\.(\d+)\.', name)
  return (int(layer[1]) if layer else -1), name


def _short(value: float, digits: int = 4) -> float:
  """Rounds to a few significant digits, so that rows stay small."""
  return float(f'{value:.{digits}g}')
