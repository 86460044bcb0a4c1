"""Reads and checks the JSON files of a MODEL_DIR; errors name the file.

Fields may be missing or null, since custom evaluators and earlier versions may
not write them. Those that are present must have the right type.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

METRICS_FILE = 'metrics.jsonl'

Json = dict[str, Any]
Check = Callable[[Any, str], Any]


def read_evaluation(path: Path) -> Json:
  """Reads the result of an evaluator: before.json, after.json and scores/.

  Raises:
    FileNotFoundError: The file does not exist.
    OSError: It cannot be read.
    ValueError: It is damaged.
  """
  return _fields(read_json(path), str(path), _EVALUATION)


def read_run(path: Path) -> Json:
  """Reads run.json, the facts of a finished run; raises as `read_evaluation`.

  `seconds`, `peak_memory_bytes` and `versions` are always in the result.
  """
  run = _fields(read_json(path), str(path), _RUN)
  return {'versions': {}, 'seconds': 0.0, 'peak_memory_bytes': 0, **run}


def read_data(path: Path) -> Json:
  """Reads dataset.json, facts of the data; raises as `read_evaluation`."""
  return _fields(read_json(path), str(path), _DATA)


def read_divergence(path: Path) -> Json:
  """Reads diverged.json; raises as `read_evaluation`."""
  found = _fields(read_json(path), str(path), {'error': values.text})
  return {'error': '', **found}


def read_settings(path: Path) -> dict[str, str]:
  """Reads settings.json, name -> text; raises as `read_evaluation`."""
  return texts(read_json(path), str(path))


def if_there(read: Callable[[Path], Json], path: Path) -> Json | None:
  """Reads a file, or returns None if it does not exist; raises as `read`."""
  return read(path) if path.exists() else None


def texts(value: Any, place: str) -> dict[str, str]:
  """Checks and returns a JSON object whose values are strings.

  Raises:
    ValueError: It is not such an object.
  """
  for name, text in values.table(value, place).items():
    values.text(text, f'{place}: {values.shown(name)}')
  return value


def _fields(value: Any, place: str, checks: dict[str, Check]) -> Json:
  """Checks the fields of an object, and returns it without its nulls."""
  known = {k: v for k, v in values.table(value, place).items() if v is not None}
  for name, check in checks.items():
    if name in known:
      check(known[name], f'{place}: {name}')
  return known


def _count(value: Any, what: str) -> int:
  return values.integer(value, what, least=0, most=2**53)


def _number(value: Any, what: str) -> float | None:
  """A number, or null for one that is not finite or not known."""
  return None if value is None else values.number(value, what)


def _interval(value: Any, what: str) -> list:
  for end in values.items(value, what, size=2):
    _number(end, what)
  return value


def _table(check: Check) -> Check:
  """Makes a check of every value of an object."""

  def checked(value: Any, what: str) -> Any:
    for name, entry in values.table(value, what).items():
      check(entry, f'{what}: {values.shown(name)}')

  return checked


def _list(check: Check) -> Check:
  """Makes a check of every entry of a list."""

  def checked(value: Any, what: str) -> Any:
    for place, entry in enumerate(values.items(value, what)):
      check(entry, f'{what}: {place}')

  return checked


def _object(*names: str, **checks: Check) -> Check:
  """Makes a check of an object that must have the fields `names`."""

  def checked(value: Any, what: str) -> Any:
    for name in names:
      if name not in values.table(value, what):
        raise ValueError(f'{what}: {name} is missing')
    _fields(value, what, checks)

  return checked


_SCORE = _object(
  'score',
  'interval',
  score=_number,
  interval=_interval,
  lower_is_better=values.boolean,
  is_number=values.boolean,
)
_EVALUATION: dict[str, Check] = {
  'step': _count,
  'task': values.text,
  'metric': values.text,
  'score': _number,
  'interval': _interval,
  'lower_is_better': values.boolean,
  'metrics': _table(_SCORE),
  'loss': _number,
  'num_examples': _count,
  'halves': _list(_table(_number)),
  'overlap': _object(
    'num_examples', 'metrics', num_examples=_count, metrics=_table(_SCORE)
  ),
  'predictions': _list(
    # Their content depends on the task; only these fields are used in sums.
    _object(score=_number, choices=_list(lambda choice, what: None))
  ),
  'made_of': values.table,
}
_RUN: dict[str, Check] = {
  'command': values.text,
  'model': values.text,
  'task': values.text,
  'optimizer': values.text,
  'started': values.text,
  'devices': values.text,
  'adapter': values.text,
  'seconds': values.number,
  'steps': _count,
  'skipped_steps': _count,
  'trainable_parameters': _count,
  'frozen_parameters': _count,
  'peak_memory_bytes': _count,
  'data_wait_fraction': _number,
  'versions': _table(values.text),
}
_SPLIT = _object('examples', examples=_count, bad_rows=_count)
_TASK: dict[str, Check] = {
  'task': values.text,
  'train': _SPLIT,
  'eval': _SPLIT,
  'overlap': _count,
}
_DATA: dict[str, Check] = {
  **_TASK,
  'rates': _list(values.number),
  'tasks': _list(_object('task', 'train', 'eval', **_TASK)),
  'batches': _list(_object('task', task=values.text, too_long=_count)),
}
