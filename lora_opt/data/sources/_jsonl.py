"""Rows of a JSON lines file."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

from lora_opt.data.sources._rows import Row, Rows, file_facts


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines(Rows):
  """Rows of a file that holds one JSON object a line (UTF-8).

  The rows are kept in memory. A line that is no JSON object raises a
  ValueError when it is asked for.

  Args:
    file: the file, relative to `folder`.
    folder: where the file is; a configuration sets this once for all files.
    limit: use the first `limit` rows only.

  Raises (at first use):
    FileNotFoundError: there is no such file.
    ValueError: there is no line in it.
  """

  file: str
  folder: str = ''
  limit: int | None = None

  @functools.cached_property
  def path(self) -> pathlib.Path:
    return pathlib.Path(self.folder).expanduser() / self.file

  @property
  def title(self) -> str:
    return str(self.path)

  def where(self, index: int) -> str:
    """File and line of row `index`: every line is one."""
    return f'{self.path}:{index + 1}'

  def facts(self) -> dict[str, Any]:
    """The file, its size and its SHA-256."""
    (facts,) = file_facts(self.path)
    return facts

  def _load(self) -> list[Row | ValueError]:
    if not self.path.is_file():
      raise FileNotFoundError(
        f'no data file {self.path}. Point the folder (in a configuration: '
        f'DATA_DIR) at the one that holds {self.file!r}'
      )
    lines = self.path.read_bytes().split(b'\n')
    if not lines[-1].strip():
      lines.pop()  # the newline that ends the file
    if not lines:
      raise ValueError(f'{self.path} is empty: expected one JSON object a line')
    return [
      _parse(line, self.where(number)) for number, line in enumerate(lines)
    ]


def _parse(line: bytes, place: str) -> Row | ValueError:
  try:
    row = json.loads(line.decode('utf-8'))
  except UnicodeDecodeError as error:
    return ValueError(
      f'{place}: not UTF-8: byte {line[error.start]:#04x} at position '
      f'{error.start}. Convert the file to UTF-8'
    )
  except json.JSONDecodeError as error:
    return ValueError(
      f'{place}: not JSON: {error.msg} at column {error.colno}, found '
      f'{_shorten(line)}'
    )
  if not isinstance(row, dict):
    return ValueError(
      f'{place}: expected a JSON object, found {type(row).__name__} '
      f'{_shorten(line)}'
    )
  return row


def _shorten(line: bytes, length: int = 60) -> str:
  text = line.decode('utf-8', errors='replace')
  return repr(text if len(text) <= length else text[:length] + '...')
