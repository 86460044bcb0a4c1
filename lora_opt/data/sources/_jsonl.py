"""Rows of a JSON lines file."""

import dataclasses
import functools
import pathlib
from typing import Any

from lora_opt.buckets.paths import is_bucket
from lora_opt.data.sources._rows import Row, Rows, file_facts
from lora_opt.reading.copies import local_copy
from lora_opt.reading.json_text import parse_json
from lora_opt.reading.lines import LONGEST, Lines
from lora_opt.reading.values import shown


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines(Rows):
  """Rows of a file that holds one JSON object per line (UTF-8).

  A line is read and parsed when it is accessed, so a file may be larger than
  the memory. A line that is not a JSON object, or not standard JSON (NaN, half
  a surrogate pair, a duplicate key), raises a ValueError.

  Args:
    file: the file, relative to `folder`.
    folder: where the file is; a configuration sets this once for all files.
    limit: use the first `limit` rows only; what follows is not read.
    longest: bytes that a line may have; a longer one raises a ValueError.

  Raises (at first use):
    FileNotFoundError: there is no such file.
    ValueError: the file has no lines.
  """

  file: str
  folder: str = ''
  limit: int | None = None
  longest: int = LONGEST

  @functools.cached_property
  def path(self) -> pathlib.Path:
    if is_bucket(self.file):
      return local_copy(self.file)
    return local_copy(self.folder, self.file) / self.file

  @property
  def title(self) -> str:
    return str(self.path)

  def where(self, index: int) -> str:
    """File and line of row `index`; every line is a row."""
    return f'{self.path}:{index + 1}'

  def facts(self) -> dict[str, Any]:
    """The file, its size and its SHA-256."""
    (facts,) = file_facts(self.path)
    return facts

  def close(self) -> None:
    """Closes the file; accessing a row opens it again."""
    self._rows.close()

  def _load(self) -> Lines:
    try:
      lines = Lines(self.path, limit=self.limit, longest=self.longest)
    except FileNotFoundError as error:
      raise FileNotFoundError(
        f'no data file {self.path}. Point the folder (in a configuration: '
        f'DATA_DIR) at the one that holds {str(self.file)!r}'
      ) from error
    if not lines:
      raise ValueError(f'{self.path} is empty: expected one JSON object a line')
    return lines

  def _row(self, index: int) -> Row:
    place = self.where(index)
    row = parse_json(self._rows[index], place, most=self.longest + 2)
    if not isinstance(row, dict):
      raise ValueError(
        f'{place}: expected a JSON object, found {type(row).__name__} '
        f'{shown(row)}'
      )
    return row
