"""Readers: yield the raw rows of a publisher's file, each with its place.

In place of a row that cannot be read, they yield a ValueError that says where
and why. If the file is damaged as a whole, they raise a ValueError.
"""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from lora_opt.reading.files import read_text
from lora_opt.reading.json_text import parse_json
from lora_opt.reading.lines import Lines
from lora_opt.reading.values import kind_of, shown

Placed = Iterator[tuple[str, Any]]

# Only finds where an entry ends; parse_json checks its content.
_LENIENT = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)
_SPACE = re.compile(r'[ \t\n\r]*')


def json_lines(path: pathlib.Path) -> Placed:
  """One JSON object per line."""
  for place, line in _lines(path):
    yield place, line if isinstance(line, ValueError) else _parsed(line, place)


def json_lines_with_labels(path: pathlib.Path, labels: pathlib.Path) -> Placed:
  """JSON lines whose labels are the lines of a second file.

  Raises:
    ValueError: the files differ in length.
  """
  rows, answers = (sum(1 for _ in _lines(file)) for file in (path, labels))
  if rows != answers:
    raise ValueError(f'{path} has {rows} rows, {labels} has {answers} labels')
  pairs = zip(json_lines(path), _lines(labels), strict=True)
  for (place, row), (_, answer) in pairs:
    bad = [one for one in (row, answer) if isinstance(one, ValueError)]
    yield place, bad[0] if bad else {**row, 'label': answer.strip()}


def json_list(path: pathlib.Path) -> Placed:
  """A JSON list of objects."""
  text = read_text(path)

  def after(place: int, *allowed: str) -> tuple[str, int]:
    """The next character that is not space, and the place after it."""
    place = _SPACE.match(text, place).end()
    found = text[place : place + 1]
    if found not in allowed:
      wanted = ' or '.join(map(repr, allowed))
      raise ValueError(
        f'{path}: expected a JSON list: {wanted} at character {place}, found '
        f'{shown(text[place : place + 40])}'
      )
    return found, place + 1

  _, place = after(0, '[')
  number, empty = 0, text[_SPACE.match(text, place).end() :][:1] == ']'
  mark, place = after(place, ']') if empty else (',', place)
  while mark == ',':
    where = f'{path}, entry {number}'
    start = _SPACE.match(text, place).end()
    try:
      _, end = _LENIENT.raw_decode(text, start)
    except RecursionError:
      raise ValueError(f'{where}: JSON nested too deep') from None
    except ValueError as error:
      raise ValueError(f'{where}: not JSON: {error}') from None
    yield where, _parsed(text[start:end], where)
    mark, place = after(end, ',', ']')
    number += 1
  after(place, '')


def table(path: pathlib.Path) -> Placed:
  """Tab-separated values with a header; quotation marks are not special.

  A line whose number of fields differs from the header's is a bad row, as is
  one that is not UTF-8.
  """
  header = None
  for place, fields in bare_table(path):
    if header is None:
      if isinstance(fields, ValueError):
        raise fields
      if len(set(fields)) < len(fields):
        raise ValueError(f'{place}: two columns have one name: {shown(fields)}')
      header = fields
    elif isinstance(fields, ValueError):
      yield place, fields
    elif len(fields) != len(header):
      yield (
        place,
        ValueError(f'{place}: {len(fields)} fields, not {len(header)}'),
      )
    else:
      yield place, dict(zip(header, fields, strict=True))


def bare_table(path: pathlib.Path) -> Placed:
  """Tab-separated values without a header: lists of fields."""
  for place, line in _lines(path):
    yield place, line if isinstance(line, ValueError) else line.split('\t')


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str | ValueError]]:
  """The text of each line that is not empty, with its place."""
  lines = Lines(path)
  for number in range(len(lines)):
    place = lines.place(number)
    try:
      # A byte order mark may open the file.
      text = lines[number].decode('utf-8' if number else 'utf-8-sig')
      if '\0' in text:
        raise ValueError(f'{place}: holds NUL, which is not text')
    except UnicodeDecodeError as error:
      yield (
        place,
        ValueError(
          f'{place}: not UTF-8: byte {error.object[error.start]:#04x} at '
          f'position {error.start}'
        ),
      )
    except ValueError as error:
      yield place, error
    else:
      if text.strip(' \r'):
        yield place, text


def _parsed(text: str, place: str) -> dict[str, Any] | ValueError:
  try:
    row = parse_json(text, place)
  except ValueError as error:
    return error
  if not isinstance(row, dict):
    return ValueError(
      f'{place}: expected a JSON object, found {kind_of(row)}: {shown(row)}'
    )
  return row
