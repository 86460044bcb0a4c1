"""Compares the model before and after training in a small table."""

import math
import re
from typing import NamedTuple

import numpy as np

from lora_opt.evaluation import _text
from lora_opt.evaluation._text import Json
from lora_opt.evaluation.bootstrap import bootstrap_interval
from lora_opt.evaluation.metrics import LOWER

# Metrics that are not a mean of per-example scores.
_NO_MEANS = 'f1|matthews|pearson|spearman|likelihood'


class Row(NamedTuple):
  """One line of the before/after table, as text."""

  name: str
  before: str
  after: str
  change: str = ''
  minor: bool = False


def compare(before: Json | None, after: Json | None) -> list[Row]:
  """The rows of the before/after table; none if nothing was evaluated.

  Scores have their stored 95 % interval, or Wilson's. The interval of the
  change combines the two by square-and-add (Newcombe 1998), as if the examples
  were different. They are the same, so it tends to be too wide.

  Args:
    before: what the evaluation before training wrote: `loss`, `metric`, `score`
      in [0, 1], `interval` and `num_examples`, each of which may be missing.
    after: the same, after training.

  Returns:
    The rows, with scores in percent. If the two evaluations are not of the same
    model on the same examples, the rows say so in place of the change.
  """
  before, after = before or {}, after or {}
  losses = [_text.number(side.get('loss')) for side in (before, after)]
  scores = [score_interval(side) for side in (before, after)]
  counts = [_text.number(side.get('num_examples')) for side in (before, after)]
  other = _other(before, after, counts)
  rows = []
  if losses != [None, None] and LOWER not in {**before, **after}:
    shown = [_text.show(loss, '{:.4f}') for loss in losses]
    change = '' if None in losses else _signed(losses[1] - losses[0], '.4f')
    rows.append(Row('Loss', *shown, other or change))
  if LOWER in {**before, **after}:
    rows += _loss_rows(before, after, scores, other)
  elif scores != [None, None]:
    name = _text.label(_text.first('metric', after, before) or 'score')
    shown = [f'{100 * s[0]:.1f} %' if s else _text.NONE for s in scores]
    wide = [s is not None and s[1] < s[2] for s in scores]
    spans = [
      f'{100 * s[1]:.1f} to {100 * s[2]:.1f}' if known else _text.NONE
      for s, known in zip(scores, wide, strict=True)
    ]
    change = span = ''
    if None not in scores:
      middle, low, high = (_signed(100 * x, '.1f') for x in _change(*scores))
      change = f'{middle} points'
      span = f'{low} to {high}' if all(wide) else _text.NONE
    rows.append(Row(name, *shown, other or change))
    span = '' if other else span
    rows.append(Row('95 % interval', *spans, span, minor=True))
  if counts != [None, None]:
    rows.append(Row('Examples', *map(_text.show, counts), minor=True))
  return rows


def _loss_rows(
  before: Json, after: Json, scores: list, other: str
) -> list[Row]:
  """A loss with its interval; the change's interval is paired by example."""
  name = _text.label(_text.first('metric', after, before) or 'loss')
  shown = [f'{s[0]:.4f}' if s else _text.NONE for s in scores]
  spans = [f'{s[1]:.4f} to {s[2]:.4f}' if s else _text.NONE for s in scores]
  change = span = ''
  if None not in scores:
    change = _signed(scores[1][0] - scores[0][0], '.4f')
    old, new = (
      [_text.number(row.get('score')) for row in side.get('predictions') or ()]
      for side in (before, after)
    )
    if old and len(old) == len(new) and None not in old + new:
      low, high = bootstrap_interval(np.subtract(new, old))
      span = f'{_signed(low, ".4f")} to {_signed(high, ".4f")}'
  return [
    Row(name, *shown, other or change),
    Row('95 % interval', *spans, '' if other else span, minor=True),
  ]


def _other(before: Json, after: Json, counts: list[float | None]) -> str:
  """What differs between before and after; '' if they can be compared."""
  old, new = (side.get('made_of') or {} for side in (before, after))
  for name in sorted(old.keys() & new.keys()):
    if old[name] != new[name]:
      return f'other {name}'
  return 'other examples' if None not in counts and len({*counts}) > 1 else ''


def format_table(before: Json | None, after: Json | None) -> str:
  """The before/after table as plain text, for the end of a run.

  Args:
    before: the evaluation before training, as in `evaluation/before.json`.
    after: the evaluation after training. Either may be None or empty.

  Returns:
    Aligned lines without a final newline; empty if both are missing.

  >>> old = {'metric': 'accuracy', 'score': 0.25, 'num_examples': 8}
  >>> print(format_table(old, old | {'score': 0.75}))
                      Before         After         Change
  Accuracy            25.0 %        75.0 %   +50.0 points
  95 % interval  7.1 to 59.1  40.9 to 92.9  +1.8 to +75.2
  Examples                 8             8
  """
  rows = compare(before, after)
  if not rows:
    return ''
  return _text.aligned(
    [('', 'Before', 'After', 'Change'), *(row[:4] for row in rows)]
  )


def score_interval(summary: Json) -> tuple[float, float, float] | None:
  """(score, low, high) of an evaluation.

  It is Wilson's 95 % interval if none is stored or the stored one has no width:
  a bootstrap of equal scores says nothing about their uncertainty. A score that
  is not a mean over examples has no Wilson interval; low and high are then the
  score.
  """
  score = _text.number(summary.get('score'))
  if score is None:
    return None
  stored = summary.get('interval')
  if isinstance(stored, list) and len(stored) == 2:
    low, high = map(_text.number, stored)
    if low is not None and high is not None and low < high:
      return score, low, high
  n = _text.number(summary.get('num_examples'))
  if LOWER in summary:
    n = None  # a loss is not a proportion
  if not n or re.match(_NO_MEANS, str(summary.get('metric'))):
    return score, score, score
  z = 1.959964  # the normal distribution's 97.5 % point
  centre = (score + z * z / (2 * n)) / (1 + z * z / n)
  spread = max(score * (1 - score) / n + z * z / (4 * n * n), 0.0)
  half = z / (1 + z * z / n) * math.sqrt(spread)
  return score, max(centre - half, 0.0), min(centre + half, 1.0)


def _change(
  before: tuple[float, float, float], after: tuple[float, float, float]
) -> tuple[float, float, float]:
  (p, p_low, p_high), (q, q_low, q_high) = before, after
  low = q - p - math.hypot(q - q_low, p_high - p)
  high = q - p + math.hypot(q_high - q, p - p_low)
  return q - p, low, high


def _signed(value: float, form: str) -> str:
  return _text.minus(f'{value:+{form}}')
