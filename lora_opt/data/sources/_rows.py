"""What sources share: loading at first use, a limit, the origin of each row."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def where(source: Sequence[Row], index: int, split: str = 'data') -> str:
  """Says in words where row `index` of `source` came from.

  Args:
    source: a source of this package, or any sequence of dicts.
    index: position of the row, from 0.
    split: what to call a source that has no method `where`.

  Returns:
    For example 'train.jsonl:4' (files count lines from 1).

  >>> where([{'question': 'Why?'}], 0, split='train')
  'train row 0'
  """
  if hasattr(source, 'where'):
    return source.where(index)
  return f'{split} row {index}'


def describe(source: Sequence[Row]) -> dict[str, Any]:
  """What identifies the rows of a source, for the record of a run.

  >>> describe([{'question': 'Why?'}])
  {'source': 'list', 'rows': 1}
  """
  facts = getattr(source, 'facts', dict)()
  return {'source': type(source).__name__, **facts, 'rows': len(source)}


class Rows(Sequence):
  """A source whose rows are loaded once, at first use.

  A subclass has a `title`, a `limit` and a method `_load` that returns the
  rows, or items from which `_row` makes rows. In place of a row that cannot be
  read, there may be the ValueError that says why.
  """

  @functools.cached_property
  def _rows(self) -> Sequence[Any]:
    limit = self.limit
    if limit is not None and (
      isinstance(limit, bool) or not isinstance(limit, int) or limit < 1
    ):
      raise ValueError(
        f'{self.title}: limit={limit!r} must be a positive number of rows, '
        'or None for all of them'
      )
    return self._load()

  def __len__(self) -> int:
    rows = len(self._rows)
    return rows if self.limit is None else min(rows, self.limit)

  def __getitem__(self, index: int) -> Row:
    if not 0 <= index < len(self):
      raise IndexError(f'{self.title} has {len(self)} rows, not row {index}')
    return self._row(index)

  def _row(self, index: int) -> Row:
    row = self._rows[index]
    if isinstance(row, ValueError):
      raise row
    return row

  def where(self, index: int) -> str:
    """Says in words where row `index` came from."""
    return f'{self.title} row {index}'


def file_facts(*paths: pathlib.Path) -> list[dict[str, Any]]:
  """Name, size and SHA-256 of files."""
  facts = []
  for path in paths:
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    size = path.stat().st_size
    facts.append({'file': str(path), 'bytes': size, 'sha256': digest})
  return facts
