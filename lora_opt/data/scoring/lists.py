"""Scores text answers; a Python list of the same content scores less."""

import math
from typing import Any

from lora_opt.reading.json_text import parse_json
from lora_opt.reading.literals import read_literal

_AS_A_LIST = 0.1


def string_insertion(answer: str, row: dict[str, Any]) -> float:
  """Accepts the text itself, or a list of its characters."""
  if answer == row['answer']:
    return 1.0
  return _AS_A_LIST * (_joined(answer, '', texts=True) == row['answer'])


def spiral_matrix(answer: str, row: dict[str, Any]) -> float:
  """Accepts numbers with spaces between them, or a list of them."""
  right = row['answer'].strip()
  if answer.strip() == right:
    return 1.0
  return _AS_A_LIST * (_joined(answer, ' ') == right)


def binary_matrix(answer: str, row: dict[str, Any]) -> float:
  """Accepts lines of numbers, or a list of lists of them."""
  if answer == row['answer']:
    return 1.0
  return _AS_A_LIST * (_lines(answer) == row['answer'])


def n_queens(answer: str, row: dict[str, Any]) -> float:
  """Accepts a board that solves the puzzle, as lines or as a list of lists."""
  boards = row['metadata']['valid_answers']
  if answer in boards:
    return 1.0
  return 0.5 * (_lines(answer, texts=True) in boards)


def number_sorting(answer: str, row: dict[str, Any]) -> float:
  """Accepts a sorted list of numbers, each within 1 of the right one."""
  right = _finite(row['answer'])
  found = _finite(answer)
  if found is None or len(found) != len(right):
    return 0.0
  downwards = row['metadata']['direction'] != 'ascending'
  near = all(abs(a - b) <= 1 for a, b in zip(found, right, strict=True))
  return float(near and found == sorted(found, reverse=downwards))


def _finite(text: str) -> list[float] | None:
  """The numbers of a JSON list, also in single quotes; None for other text."""
  try:
    items = parse_json(text.replace("'", '"'), 'the answer', depth=8)
    found = [float(item) for item in items]
  except (OverflowError, TypeError, ValueError):
    return None
  good = isinstance(items, list) and all(map(math.isfinite, found))
  return found if good else None


def _lines(text: str, texts: bool = False) -> str | None:
  value = _literal(text)
  if not isinstance(value, list | tuple):
    return None
  lines = [_join(row, ' ', texts) for row in value]
  return None if None in lines else '\n'.join(lines)


def _joined(text: str, between: str, texts: bool = False) -> str | None:
  return _join(_literal(text), between, texts)


def _join(items: Any, between: str, texts: bool) -> str | None:
  if not isinstance(items, list | tuple | str):
    return None
  if texts and not all(isinstance(item, str) for item in items):
    return None
  return between.join(map(str, items))


def _literal(text: str) -> Any:
  try:
    return read_literal(text)
  except ValueError:
    return None
