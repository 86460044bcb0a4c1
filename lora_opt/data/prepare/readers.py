"""Readers: raw rows of a publisher's file, each with its place."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

Placed = Iterator[tuple[str, Any]]


def json_lines(path: pathlib.Path) -> Placed:
  """One JSON value a line."""
  with path.open('rb') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        place = f'{path}:{number}'
        yield place, _parsed(line, place)


def json_lines_with_labels(path: pathlib.Path, labels: pathlib.Path) -> Placed:
  """JSON lines whose labels are the lines of a second file.

  Raises:
    ValueError: the files differ in length.
  """
  answers = labels.read_text('utf-8').split()
  rows = list(json_lines(path))
  if len(rows) != len(answers):
    raise ValueError(
      f'{path} has {len(rows)} rows, {labels} has {len(answers)} labels'
    )
  for (place, row), answer in zip(rows, answers, strict=True):
    yield place, {**row, 'label': answer}


def json_list(path: pathlib.Path) -> Placed:
  """A JSON list."""
  rows = _parsed(path.read_bytes(), str(path))
  if not isinstance(rows, list):
    raise ValueError(f'{path}: expected a JSON list')
  for number, row in enumerate(rows):
    yield f'{path}, entry {number}', row


def table(path: pathlib.Path) -> Placed:
  """Tab-separated values under a header; a quotation mark is just a character.

  A line with another number of fields than the header raises ValueError, as
  does one that is not UTF-8.
  """
  header = None
  for place, fields in _lines(path):
    if header is None:
      header = fields
    elif len(fields) != len(header):
      yield place, ValueError(f'{len(fields)} fields, not {len(header)}')
    else:
      yield place, dict(zip(header, fields, strict=True))


def bare_table(path: pathlib.Path) -> Placed:
  """Tab-separated values without a header: lists of fields."""
  return _lines(path)


def _lines(path: pathlib.Path) -> Placed:
  text = path.read_bytes().decode('utf-8-sig')
  # Not splitlines(): sentences may hold other characters that it splits at.
  for number, line in enumerate(text.replace('\r\n', '\n').split('\n'), 1):
    if line:
      yield f'{path}:{number}', line.split('\t')


def _parsed(data: bytes, place: str) -> Any:
  try:
    return json.loads(data.decode('utf-8-sig'))
  except ValueError as error:
    return ValueError(f'{place}: not JSON in UTF-8: {error}')
