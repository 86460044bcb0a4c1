"""Draws a run's curves as inline SVG in the colours and fonts of the page."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lora_opt.evaluation import _text, drawing
from lora_opt.evaluation._text import Json
from lora_opt.evaluation.metrics import LOWER

_POINTS = 1000  # at most, drawn in one curve

Series = Sequence[tuple[float, float]]


class Curve(NamedTuple):
  """One drawing and what it shows."""

  title: str
  has_train: bool
  has_eval: bool
  svg: str


def draw_curves(
  history: Sequence[Json], evaluations: Iterable[Json]
) -> list[Curve]:
  """Draws each quantity that was logged more than once.

  Args:
    history: the rows of `metrics.jsonl`.
    evaluations: further evaluations, those before and after training, with
      `step`, `loss`, `metric` and `score`.

  Returns:
    The drawings, the loss and the main metric first.
  """
  train = [row for row in history if row.get('split') == 'train']
  tests = [row for row in history if row.get('split') == 'eval']
  metric, share = 'accuracy', True
  for row in evaluations:
    metric = str(row.get('metric', metric))
    share = LOWER not in row
    tests.append({**row, metric: row.get('score')})
  speed = 'timing/tokens_per_second'
  if not _series(train, speed):
    speed = 'timing/target_tokens_per_second'
  if not history:
    return []  # two points alone say no more than the table
  curves = []
  names = ['loss', metric, 'learning_rate', 'grad_norm', speed]
  names += sorted({k for row in train for k in row if k.startswith('lora/')})
  for name in names:
    line, points = _series(train, name), _series(tests, name)
    if max(len(line), len(points)) > 1:
      svg = _draw(name, line, points, share=share and name == metric)
      curves.append(Curve(_text.label(name), bool(line), bool(points), svg))
  return curves


def _series(rows: Iterable[Json], name: str) -> Series:
  """(step, value) where both are finite, with one value per step, in order."""
  pairs = ((_text.number(r.get('step')), _text.number(r.get(name)))
           for r in rows)  # fmt: skip
  return sorted({x: y for x, y in pairs if None not in (x, y)}.items())


def _draw(name: str, line: Series, points: Series, share: bool) -> str:
  def draw(axes, ink):
    drawing.plain(axes, ink)
    if line:
      stride = math.ceil(len(line) / _POINTS)
      steps, values = zip(*line[::stride], strict=True)
      if name == 'learning_rate':  # exact; smoothing would only distort it
        axes.plot(steps, values, color=ink.accent, linewidth=1.8)
      else:
        smooth = _smooth([value for _, value in line])[::stride]
        axes.plot(steps, values, color=ink.accent, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, color=ink.accent, linewidth=1.8)
    if points:
      steps, values = zip(*points, strict=True)
      axes.plot(steps, values, color=ink.second, linewidth=1, marker='o',
                markersize=4.5)  # fmt: skip
    if share or name.startswith('timing/'):
      top = max(value for _, value in [*line, *points])
      axes.set_ylim(0, 1.15 * top if top > 0 else 1)
    if share:
      axes.yaxis.set_major_formatter(drawing.percent)

  return drawing.to_svg(draw, (5.0, 2.6), name)


def _smooth(values: Sequence[float]) -> list[float]:
  """A mean over about 1/25 of the run, centred so that it does not lag.

  The weights fall off exponentially on both sides.
  """
  past, future = _decayed(values), _decayed(values[::-1])[::-1]
  return [
    (total + rest - value) / (weight + remaining - 1)
    for value, (total, weight), (rest, remaining) in zip(
      values, past, future, strict=True
    )
  ]


def _decayed(values: Sequence[float]) -> list[tuple[float, float]]:
  """The decayed sum up to each value, and the sum of its weights."""
  keep = max(0.0, 1 - 50 / len(values))
  total, weight, sums = 0.0, 0.0, []
  for value in values:
    total, weight = keep * total + value, keep * weight + 1
    sums.append((total, weight))
  return sums
