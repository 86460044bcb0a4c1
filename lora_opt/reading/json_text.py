"""Parses JSON strictly: only unambiguous text, within bounds."""

import json
import math
import pathlib
import re
from typing import Any, NoReturn

from lora_opt.reading import values
from lora_opt.reading.files import read_bytes

# Deeper than any file that this project reads, far below Python's own limit.
DEPTH = 100
# Digits of an integer: 2^64 has 20. Python allows 4,300.
DIGITS = 40
# Of a whole file: a tokenizer.json of 256,000 tokens has 34 MB.
MOST_BYTES = 2**28

_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')


def read_json(
  file: pathlib.Path,
  *,
  kind: type = dict,
  most: int = MOST_BYTES,
  infinity: bool = False,
) -> Any:
  """Reads a JSON file.

  Args:
    file: The file, in UTF-8.
    kind: The expected type, `dict` or `list`; `object` for any.
    most: The largest allowed size in bytes.
    infinity: As for `parse_json`.

  Returns:
    The value.

  Raises:
    FileNotFoundError: There is no such file.
    OSError: It cannot be read.
    ValueError: It is too long or not of this type, or as for `parse_json`.
  """
  value = parse_json(
    read_bytes(file, most=most), str(file), most=most, infinity=infinity
  )
  if not isinstance(value, kind):
    wanted = {dict: 'an object', list: 'a list'}[kind]
    raise ValueError(
      f'{file} holds {values.kind_of(value)} of JSON, expected {wanted}'
    )
  return value


def parse_json(
  data: bytes | str,
  place: str,
  *,
  most: int = MOST_BYTES,
  depth: int = DEPTH,
  surrogates: bool = False,
  infinity: bool = False,
) -> Any:
  """Parses JSON, refusing ambiguous input that Python's parser accepts.

  This means NaN and infinity, numbers beyond float64, duplicate keys and lone
  surrogates, and nesting so deep or integers so long that they only do harm.

  Args:
    data: The text; bytes are UTF-8, with or without a byte order mark.
    place: Where the text comes from, for messages.
    most: The largest allowed number of bytes or characters.
    depth: How deep lists and objects may be nested.
    surrogates: Allow lone surrogates; the caller then checks each string.
    infinity: Accept Infinity and -Infinity, which are not JSON, as Python does.

  Raises:
    ValueError: It is not such JSON; the message begins with `place`.

  >>> parse_json(b'{"a": [1, 2.5, null]}', 'a.json')
  {'a': [1, 2.5, None]}
  """
  if len(data) > most:
    raise ValueError(f'{place}: {len(data):,} bytes, at most {most:,} are read')
  try:
    text = data if isinstance(data, str) else data.decode('utf-8-sig')
    value = (_WITH_INFINITY if infinity else _DECODER).decode(text)
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{place}: not UTF-8: byte {data[error.start]:#04x} at position '
      f'{error.start}. Convert the file to UTF-8'
    ) from None
  except json.JSONDecodeError as error:
    raise ValueError(
      f'{place}: not JSON: {error.msg.removesuffix(" at")} at line '
      f'{error.lineno}, column {error.colno}, found '
      f'{values.shown(text, 60) if text.strip() else "no text"}'
    ) from None
  except RecursionError:
    raise ValueError(_too_deep(place, depth)) from None
  except ValueError as error:
    raise ValueError(f'{place}: {error}') from None
  if isinstance(value, dict | list) and (
    text.count('[') + text.count('{') > depth
  ):
    _check_depth(value, place, depth)
  # In UTF-8 bytes a lone surrogate can only occur as an escape.
  pure = data is not text or text.isascii()
  if not surrogates and (_SURROGATE.search(text) or not pure):
    _check_text(value, place)
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen = set()
    for key, _ in pairs:
      if key in seen:
        raise ValueError(f'not JSON: the key {values.shown(key)} occurs twice')
      seen.add(key)
  return found


def _integer(digits: str) -> int:
  if len(digits) > DIGITS:
    raise ValueError(f'a whole number of {len(digits)} digits is not read')
  return int(digits)


def _float(digits: str) -> float:
  value = float(digits)
  if not math.isfinite(value):
    raise ValueError(f'the number {values.shown(digits)} is too large')
  return value


def _infinity(name: str) -> float:
  return _no_number(name) if name == 'NaN' else float(name)


def _no_number(name: str) -> NoReturn:
  raise ValueError(f'not JSON: {name} is not a number')


def _check_depth(value: Any, place: str, depth: int) -> None:
  level = [value]
  for _ in range(depth):
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
    if not level:
      return
  raise ValueError(_too_deep(place, depth))


def _too_deep(place: str, depth: int) -> str:
  return f'{place}: JSON nested more than {depth} deep is not read'


def _check_text(value: Any, place: str) -> None:
  waiting = [value]
  while waiting:
    one = waiting.pop()
    if isinstance(one, str):
      values.text(one, place)
    elif isinstance(one, list):
      waiting += one
    elif isinstance(one, dict):
      waiting += one
      waiting += one.values()


# Created once, because data files have many short lines.
_DECODER, _WITH_INFINITY = (
  json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=constant,
  )
  for constant in (_no_number, _infinity)
)
