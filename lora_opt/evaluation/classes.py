"""The results of a classifier by class: recall, precision and confusions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_opt.evaluation import _text
from lora_opt.evaluation._text import Json

# Most classes for a table with a row for each, and for one that also has a
# column for each.
MOST_ROWS, MOST_COLUMNS = 200, 25


class ClassRow(NamedTuple):
  """The results for one class, as text."""

  name: str
  examples: str
  before: str  # recall: percentage of its examples that are predicted as it
  after: str
  precision: str  # percentage of the examples predicted as it that are right


class Cell(NamedTuple):
  """How many examples of one class are predicted as another."""

  count: int
  share: float  # of the examples of that class, from 0 to 1
  right: bool
  says: str  # in words


class Classes(NamedTuple):
  """The sections of a report on classes."""

  rows: Sequence[ClassRow]
  names: Sequence[str]
  confusions: Sequence[tuple[str, Sequence[Cell]]]  # empty with many classes
  when: str  # the evaluation that precision and confusions come from


def by_class(before: Json, after: Json) -> Classes | None:
  """Makes the tables for two evaluations of a classifier.

  Args:
    before: what the evaluation before training wrote; may be empty.
    after: the same, after training.

  Returns:
    The tables; None if the predictions are not choices among the same few
    names.

  >>> rows = [{'choices': ['ant', 'bee'], 'answer': 0, 'choice': 1}] * 3
  >>> found = by_class({}, {'predictions': rows})
  >>> found.rows[0]
  ClassRow(name='ant', examples='3', before='–', after='0.0 %', precision='–')
  >>> found.confusions[0][1][1].says
  '3 of ant said to be bee'
  """
  sides = [_counts(side) for side in (before, after)]
  known = [side for side in sides if side is not None]
  if not known or any(side[0] != known[0][0] for side in known):
    return None
  names, counts = known[-1]
  shares = [_recall(side and side[1], len(names)) for side in sides]
  rows = [
    ClassRow(
      name,
      f'{counts[i].sum():,}',
      *(_percent(share[i]) for share in shares),
      _percent(_ratio(counts[i, i], counts[:, i].sum())),
    )
    for i, name in enumerate(names)
  ]
  confusions = []
  if len(names) <= MOST_COLUMNS:
    confusions = [
      (name, _cells(names, counts, i)) for i, name in enumerate(names)
    ]
  when = 'after training' if sides[1] is not None else 'before training'
  return Classes(rows, names, confusions, when)


def _counts(evaluation: Json) -> tuple[list[str], np.ndarray] | None:
  """The names, and the confusion matrix: counts by (right, predicted) class."""
  predictions = evaluation.get('predictions') or ()
  if not predictions:
    return None
  names = predictions[0].get('choices')
  if not isinstance(names, list) or not 2 <= len(names) <= MOST_ROWS:
    return None
  counts = np.zeros((len(names), len(names)), int)
  for row in predictions:
    places = row.get('answer'), row.get('choice')
    if row.get('choices') != names or not all(
      _is_place(place, len(names)) for place in places
    ):
      return None
    counts[places] += 1
  return [str(name) for name in names], counts


def _is_place(value: Any, count: int) -> bool:
  whole = isinstance(value, int) and not isinstance(value, bool)
  return whole and 0 <= value < count


def _recall(counts: np.ndarray | None, size: int) -> list[float | None]:
  if counts is None:
    return [None] * size
  return [_ratio(counts[i, i], counts[i].sum()) for i in range(size)]


def _cells(names: Sequence[str], counts: np.ndarray, i: int) -> list[Cell]:
  total = counts[i].sum()
  return [
    Cell(
      int(count),
      round(float(count / max(total, 1)), 3),
      i == j,
      f'{count} of {names[i]} said to be {names[j]}',
    )
    for j, count in enumerate(counts[i])
  ]


def _ratio(part: int, whole: int) -> float | None:
  return float(part / whole) if whole else None


def _percent(share: float | None) -> str:
  return _text.show(None if share is None else 100 * share, '{:.1f} %')
