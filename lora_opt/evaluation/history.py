"""Reads back the history of a run: `metrics.jsonl`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lora_opt.buckets.paths import as_path, is_bucket
from lora_opt.reading import values
from lora_opt.reading.json_text import parse_json
from lora_opt.run_folder.run_files import METRICS_FILE

# Of one line; this library writes no longer ones.
_MOST_BYTES = 2**20


class Line(NamedTuple):
  """One line of the file: its row, or what is wrong with it."""

  data: bytes
  row: dict[str, Any] | None
  problem: str


def read_metrics(model_dir: str | Path) -> list[dict[str, Any]]:
  """Reads a run's metrics, one row for each split and step, in step order.

  A line that is not a whole row is left out; `problems` names those lines. If a
  step was logged twice, the later values are used. If the file is missing, the
  history is empty.

  Args:
    model_dir: the folder of the run.

  Returns:
    Rows `{'step': int, 'time': seconds, 'split': str, name: number, ...}`.

  Raises:
    OSError: the file cannot be read.
  """
  rows: dict[tuple[str, int], dict[str, Any]] = {}
  for line in read_lines(as_path(model_dir) / METRICS_FILE):
    if line.row is not None:
      key = line.row['split'], line.row['step']
      rows.setdefault(key, {}).update(line.row)
  return sorted(rows.values(), key=lambda row: row['step'])


def problems(model_dir: str | Path) -> str:
  """Says which lines cannot be read; '' if all can.

  A killed run leaves a last line without a line end; that is not a problem.
  """
  path = as_path(model_dir) / METRICS_FILE
  found = [line.problem for line in read_lines(path) if line.problem]
  if not found:
    return ''
  rest = len(found) - 1
  more = f', and {rest} more line{"s" if rest > 1 else ""}' if rest else ''
  return f'{found[0]}{more}: left out, the others are used'


def read_lines(path: Path, start: int = 0) -> Iterator[Line]:
  """Yields all lines of a metrics file; none if it is missing.

  Args:
    path: the file.
    start: number of bytes to skip, which must be whole lines.

  Raises:
    OSError: it cannot be read.
  """
  if not path.exists():
    return
  number = 0
  with _opened(path) as file:
    file.seek(start)
    while data := file.readline(_MOST_BYTES):
      number += 1
      try:
        yield Line(data, _row(data, f'{path} line {number}'), '')
      except ValueError as error:
        whole = data.endswith(b'\n')
        yield Line(data, None, str(error) if whole else '')


def _opened(path: Path) -> BinaryIO:
  # The `readline` of fsspec's files cannot limit the length of a line.
  return io.BytesIO(path.read_bytes()) if is_bucket(path) else path.open('rb')


def _row(data: bytes, place: str) -> dict[str, Any]:
  row = values.table(parse_json(data, place), place)
  values.integer(row.get('step'), f'{place}: step', least=0, most=2**53)
  values.text(row.get('split'), f'{place}: split')
  for name, value in row.items():
    if name != 'split' and value is not None:
      values.number(value, f'{place}: {values.shown(name)}')
  return row


def data_wait_fraction(model_dir: str | Path) -> float | None:
  """The share of the logged steps' time that making and placing batches took.

  The first step of a process is left out, because compilation takes most of its
  time. None if no step is left.
  """
  steps = [
    (row['timing/data_wait_fraction'], 1 / row['timing/steps_per_second'])
    for row in read_metrics(model_dir)
    if row.get('timing/data_wait_fraction') is not None
    and (row.get('timing/steps_per_second') or 0) > 0
  ]
  if not steps:
    return None
  return sum(share * time for share, time in steps) / sum(t for _, t in steps)


def skipped_steps(model_dir: str | Path) -> int:
  """How many steps the optimizer skipped; 0 if it does not count them."""
  rows = read_metrics(model_dir)
  return int(max((row.get('skipped_steps') or 0 for row in rows), default=0))
