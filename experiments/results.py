"""Results that are small enough to commit, and READMEs made from them."""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

DIGITS = 4


def save_rows(path: pathlib.Path, rows: Iterable[dict]) -> None:
  """Writes one JSON object per line: four digits, null for inf and NaN."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(_line(row, DIGITS) for row in rows), encoding='utf-8')


def append_row(path: pathlib.Path, row: dict, digits: int = DIGITS) -> None:
  """Appends a line with one write, so that two programs can share a file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('ab', buffering=0) as file:
    file.write(_line(row, digits).encode())


def load_rows(path: pathlib.Path) -> list[dict]:
  """Reads what `save_rows` wrote, lists as arrays, and null as inf."""
  lines = path.read_text(encoding='utf-8').splitlines()
  return [{k: _array(v) for k, v in json.loads(line).items()} for line in lines]


def _line(row: dict, digits: int) -> str:
  return json.dumps(_plain(row, digits), separators=(',', ':')) + '\n'


def _plain(x: Any, digits: int) -> Any:
  if isinstance(x, dict):
    return {k: _plain(v, digits) for k, v in x.items()}
  if isinstance(x, np.ndarray | list | tuple):
    return [_plain(v, digits) for v in x]
  if isinstance(x, float | np.floating):
    return float(f'{x:.{digits}g}') if np.isfinite(x) else None
  return int(x) if isinstance(x, np.integer) else x


def _array(x: Any) -> Any:
  if x is None:
    return np.inf
  if not isinstance(x, list):
    return x
  try:
    values = np.array(x, np.float64)
  except (TypeError, ValueError):
    return x  # words, or lists of different lengths
  return np.where(np.isnan(values), np.inf, values)


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table in Markdown.

  >>> print(markdown(['a', 'b'], [[1, 'x']]))
  | a | b |
  | --- | --- |
  | 1 | x |
  """
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def with_section(readme: str, name: str, text: str) -> str:
  """Replaces the text between the README's marks of this name.

  Raises:
    ValueError: the README lacks `<!-- NAME -->` ... `<!-- end of NAME -->`.

  >>> print(with_section('<!-- a -->old<!-- end of a -->!', 'a', 'new'))
  <!-- a -->
  new
  <!-- end of a -->!
  """
  begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
  if readme.count(begin) != 1 or readme.count(end) != 1:
    raise ValueError(f'README: add one line "{begin}" and one "{end}".')
  before, after = readme.split(begin)[0], readme.split(end)[1]
  return f'{before}{begin}\n{text.strip()}\n{end}{after}'


def table_section(
  table: Callable[[list[dict]], str], folder: pathlib.Path
) -> dict[str, str]:
  """The sections of a README whose only table is made from results.jsonl."""
  return {'table': table(load_rows(folder / 'results.jsonl'))}


def rebuild(
  about: str,
  folder: pathlib.Path,
  sections: Callable[[pathlib.Path], dict[str, str]],
  draw: Callable[[pathlib.Path], None] | None = None,
  argv: Sequence[str] | None = None,
) -> None:
  """The command line of a report: writes the README's tables and the plots.

  Args:
    about: the text of --help.
    folder: the default folder of results and README; --folder changes it.
    sections: folder -> {name of a section of the README: its text}.
    draw: folder -> None; draws plots into it. None if there are no plots.
    argv: arguments; None for those of the command line.
  """
  parser = argparse.ArgumentParser(description=about)
  parser.add_argument('--folder', type=pathlib.Path, default=folder)
  folder = parser.parse_args(argv).folder
  readme = folder / 'README.md'
  text = readme.read_text(encoding='utf-8')
  for name, section in sections(folder).items():
    text = with_section(text, name, section)
  readme.write_text(text, encoding='utf-8')
  if draw:
    draw(folder)
