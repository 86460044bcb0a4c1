"""The history of a run: `metrics.jsonl`, read back."""

import json
from pathlib import Path
from typing import Any

METRICS_FILE = 'metrics.jsonl'


def read_metrics(model_dir: str | Path) -> list[dict[str, Any]]:
  """Reads a run's metrics, one row for each split and step, in step order.

  A line that is not whole JSON (the run was killed while writing) is left out.
  Where a step was logged twice the later values stand. A missing file is an
  empty history.

  Args:
    model_dir: the folder of the run.

  Returns:
    Rows `{'step': int, 'time': seconds, 'split': str, name: number, ...}`.
  """
  path = Path(model_dir) / METRICS_FILE
  if not path.exists():
    return []
  rows: dict[tuple[str, int], dict[str, Any]] = {}
  for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
    row = parse_row(line)
    if row is not None:
      rows.setdefault((str(row.get('split')), row['step']), {}).update(row)
  return sorted(rows.values(), key=lambda row: row['step'])


def parse_row(line: str) -> dict[str, Any] | None:
  """The row of one line, or None where it is not a whole row."""
  try:
    row = json.loads(line)
  except ValueError:
    return None
  whole = isinstance(row, dict) and isinstance(row.get('step'), int)
  return row if whole else None


def data_wait_fraction(model_dir: str | Path) -> float | None:
  """The share of making and placing batches in the time of the logged steps.

  The first step of a process is left out: its time is the compiler's. None if
  no step is left.
  """
  steps = [
    (row['timing/data_wait_fraction'], 1 / row['timing/steps_per_second'])
    for row in read_metrics(model_dir)
    if row.get('timing/data_wait_fraction') is not None
  ]
  if not steps:
    return None
  return sum(share * time for share, time in steps) / sum(t for _, t in steps)
