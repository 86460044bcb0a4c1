"""Converts raw rows to ours, and checks the type of every field."""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

from lora_opt.data.prepare.recipes import Recipe
from lora_opt.data.sources._blocks import cut
from lora_opt.reading.values import shown, text

_LARGEST = 3.4e38  # numbers are stored as float32


def checked_rows(
  recipe: Recipe, *paths: pathlib.Path
) -> Iterator[dict[str, Any] | ValueError]:
  """The rows of a split, in the publisher's order.

  In place of a row that cannot be used, yields a ValueError that says where it
  is and what is wrong.

  Raises:
    FileNotFoundError: a file is missing.
    OSError: a file cannot be read.
    ValueError: a file is damaged as a whole.
  """
  for place, raw in recipe.read(*paths):
    if isinstance(raw, ValueError):
      yield raw
      continue
    try:
      row = recipe.row(raw)
      for name, kind in recipe.fields.items():
        _check(name, kind, row[name])
    except (ArithmeticError, LookupError, TypeError) as error:
      yield ValueError(f'{place}: {type(error).__name__} {cut(error)}')
    except ValueError as error:
      yield ValueError(f'{place}: {error}')
    else:
      yield row


def _check(name: str, kind: str, value: Any) -> None:
  """Raises ValueError unless a field has the type that the recipe says."""
  types = {'text': str, 'texts': list, 'int': int, 'float': float, 'bool': bool}
  good = isinstance(value, types[kind])
  if kind == 'int':
    good = good and not isinstance(value, bool) and abs(value) < 2**63
  if kind == 'float':
    good = good and math.isfinite(value) and abs(value) < _LARGEST
  if not good:
    raise ValueError(f'field {name!r} must be {kind}, found {shown(value)}')
  for one in {'text': [value], 'texts': value}.get(kind, []):
    text(one, f'field {name!r}')
