"""How fast methods learn, and what their steps cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_opt.evaluation._text import Json
from lora_opt.evaluation.study.ranking import Chosen, Group

_WINDOW = 0.1  # fraction of the run; the loss of a single batch says little


class Pace(NamedTuple):
  """A method compared with the baseline; None for unknown values."""

  reached: int  # number of runs whose loss reached the baseline's last loss
  runs: int
  steps: float | None  # to reach it, divided by the baseline's; median of runs
  step_seconds: float | None  # divided by the baseline's; median of groups
  memory: float | None  # peak divided by the baseline's; median of groups


def paces(
  chosen: Mapping[Group, Mapping[str, Chosen]], baseline: str
) -> dict[str, Pace]:
  """The pace of every method; empty without the baseline."""
  methods = sorted({method for found in chosen.values() for method in found})
  if baseline not in methods:
    return {}
  return {
    method: _pace(chosen.values(), method, baseline) for method in methods
  }


def _pace(groups, method: str, baseline: str) -> Pace:
  steps, seconds, memory, runs = [], [], [], 0
  for found in groups:
    mine, theirs = found[method].rows, found[baseline].rows
    for row, other in zip(mine, theirs, strict=True):
      if 'curve' not in row or 'curve' not in other:
        continue
      runs += 1
      target = smooth(other['curve']['loss'])[-1]
      step = step_to(row['curve'], target)
      if step is not None:
        steps.append(step / step_to(other['curve'], target))
    seconds += _ratio(mine, theirs, 'step_seconds')
    memory += _ratio(mine, theirs, 'peak_memory_bytes')
  # Runs that never reached it count as slower than all that did.
  late = [math.inf] * (runs - len(steps))
  middle = statistics.median_low([*steps, *late]) if runs else math.inf
  return Pace(
    len(steps),
    runs,
    middle if math.isfinite(middle) else None,
    statistics.median(seconds) if seconds else None,
    statistics.median(memory) if memory else None,
  )


def smooth(losses: Sequence[float]) -> list[float]:
  """Smooths losses: each becomes the mean of the tenth of the run up to it.

  >>> smooth([3.0, 1.0])
  [3.0, 1.0]
  """
  width = max(1, round(_WINDOW * len(losses)))
  return [
    statistics.fmean(losses[max(0, end - width) : end])
    for end in range(1, len(losses) + 1)
  ]


def step_to(curve: Json, target: float) -> int | None:
  """The first step whose smoothed loss is at the target or below it.

  >>> step_to({'step': [1, 2, 3], 'loss': [3.0, 2.0, 1.0]}, 2.5)
  2
  """
  for step, loss in zip(curve['step'], smooth(curve['loss']), strict=True):
    if loss <= target:
      return step
  return None


def _ratio(mine, theirs, name: str) -> list[float]:
  values = [
    [row[name] for row in rows if row.get(name)] for rows in (mine, theirs)
  ]
  if not all(values):
    return []
  return [statistics.median(values[0]) / statistics.median(values[1])]
