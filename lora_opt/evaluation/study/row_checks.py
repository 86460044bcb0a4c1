"""Checks that the rows of a study contain what its report needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_opt.evaluation._text import Json
from lora_opt.evaluation.metrics import LOWER
from lora_opt.reading import values


def check(rows: Sequence[Json], file: Path) -> None:
  """Checks the fields that are used of every row.

  Args:
    rows: the rows of results.jsonl, one per line.
    file: that file, for messages.

  Raises:
    ValueError: a field is missing or has the wrong type; the message names
      file, line and field.
  """
  for number, row in enumerate(rows, start=1):
    _check(row, f'{file}, line {number}')


def _check(row: Any, place: str) -> None:
  values.table(row, place)
  for name in ('task', 'method'):
    values.text(row.get(name), f'{place}: {name}')
  for name in ('options', 'budget'):
    for value in values.table(row.get(name), f'{place}: {name}').values():
      values.text(value, f'{place}: {name}')
  for flag in values.items(row.get('flags'), f'{place}: flags'):
    values.text(flag, f'{place}: flags')
  if row.get('model') is not None:
    values.text(row['model'], f'{place}: model')
  if row.get('rank') is not None:
    values.integer(row['rank'], f'{place}: rank', least=0)
  # Methods are compared by rate and seed, which every run must have.
  values.number(row.get('learning_rate'), f'{place}: learning_rate', above=0)
  values.integer(row.get('seed'), f'{place}: seed')
  if 'score' in row:
    _check_score(row, place)
  _check_course(row, place)


def _check_score(row: Json, place: str) -> None:
  values.number(row['score'], f'{place}: score')
  metric = values.text(row.get('metric'), f'{place}: metric')
  values.integer(row.get('num_examples'), f'{place}: num_examples', least=0)
  if row.get('loss') is not None:
    values.number(row['loss'], f'{place}: loss')
  if LOWER in row:
    values.boolean(row[LOWER], f'{place}: {LOWER}')
  halves = row.get('halves')
  if halves is None:
    return
  values.items(halves, f'{place}: halves', size=2)
  for half in halves:
    if values.table(half, f'{place}: halves'):
      values.number(half.get(metric), f'{place}: halves: {metric}')


def _check_course(row: Json, place: str) -> None:
  """Checks how the run went: curve, times, state of the factors."""
  for name in ('seconds', 'step_seconds', 'peak_memory_bytes'):
    if row.get(name) is not None:
      values.number(row[name], f'{place}: {name}', least=0)
  if 'curve' in row:
    curve = values.table(row['curve'], f'{place}: curve')
    steps = values.items(curve.get('step'), f'{place}: curve: step')
    losses = values.items(curve.get('loss'), f'{place}: curve: loss')
    if not steps or len(steps) != len(losses):
      raise ValueError(
        f'{place}: curve: {len(steps)} steps and {len(losses)} losses'
      )
    for step, loss in zip(steps, losses, strict=True):
      values.integer(step, f'{place}: curve: step', least=1)
      values.number(loss, f'{place}: curve: loss')
  for value in _table(row, 'diagnostics', place).values():
    values.number(value, f'{place}: diagnostics')
  for sites in _table(row, 'pairs', place).values():
    for layers in values.table(sites, f'{place}: pairs').values():
      for value in values.items(layers, f'{place}: pairs'):
        values.number(value, f'{place}: pairs')


def _table(row: Json, name: str, place: str) -> Mapping[str, Any]:
  found = row.get(name)
  return {} if found is None else values.table(found, f'{place}: {name}')
