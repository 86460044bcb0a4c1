"""Scores the answers of a model to the data sets of reasoning_gym.

Answers are untrusted text. They are compared and parsed, within limits, and
nothing in them is ever executed. `lora_opt.data.scoring.table` says how each
data set is scored.
"""

import contextlib
import functools
import importlib.metadata
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

from lora_opt.data.scoring import table

# An answer longer than this scores 0 if it also has more than four times the
# length of the right one.
LONGEST = 10_000

Scorer = Callable[[str | None, Mapping[str, Any]], float]


def check_offered(name: str) -> None:
  """Raises ValueError for a data set that may not be used at all."""
  if why := table.NOT_OFFERED.get(name):
    raise ValueError(f'reasoning_gym {name!r} is not offered: {why}')


def check_scored(name: str) -> None:
  """Raises ValueError unless answers to a data set can be scored safely.

  >>> check_scored('chain_sum')
  >>> check_scored('codeio')
  Traceback (most recent call last):
  ...
  ValueError: reasoning_gym 'codeio' is not offered: it executes code that a \
language model wrote, to make its questions
  """
  check_offered(name)
  theirs = name in table.AS_IT_IS or name in table.PREPARED
  installed = _installed() if theirs else None
  if why := table.NOT_SCORED.get(name):
    pass
  elif theirs and installed != table.VERSION:
    why = (
      f'the scorers of version {table.VERSION} were examined, and '
      f'{installed} is installed: pip install reasoning-gym=={table.VERSION}'
    )
  elif not theirs and name not in table.OURS:
    why = 'its scorer was not examined, and could execute what a model writes'
  if why:
    raise ValueError(
      f'answers to reasoning_gym {name!r} are not scored: {why}. Give the '
      'task a scorer of its own, or use a Completion task, which is judged by '
      'likelihood'
    )


@functools.cache
def _installed() -> str:
  try:
    return importlib.metadata.version('reasoning-gym')
  except importlib.metadata.PackageNotFoundError:
    return 'none'


def score(
  name: str, answer: str, row: Mapping[str, Any], theirs: Scorer
) -> float:
  """Scores one answer, between 0 and 1.

  Args:
    name: The data set.
    answer: What the model wrote. It scores 0 if it is far too long.
    row: The row of the data set.
    theirs: The data set's own scorer, used if it was found to be safe.

  Raises:
    ValueError: Answers to the data set are not scored, see `check_scored`.
  """
  check_scored(name)
  right = row.get('answer')
  size = len(right) if isinstance(right, str) else 0
  if len(answer) > max(LONGEST, 4 * size):
    return 0.0
  if name in table.OURS:
    return table.OURS[name](answer, row)
  prepared = table.PREPARED.get(name, str)(answer)
  return 0.0 if prepared is None else _theirs(theirs, prepared, row)


def _theirs(scorer: Scorer, answer: str, row: Mapping[str, Any]) -> float:
  """Scores by their rule, without printing and without changing the row."""
  copy = {**row, 'metadata': dict(row.get('metadata', {}))}
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    try:
      found = float(scorer(answer, copy))
    except Exception:
      return 0.0  # some fail on text that is not an answer
  return found if math.isfinite(found) else 0.0
