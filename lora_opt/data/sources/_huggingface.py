"""Rows of a folder in the formats of Hugging Face datasets."""

import bisect
import dataclasses
import functools
import glob
import itertools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from lora_opt.data import hub
from lora_opt.data.sources._blocks import (
  MEMORY,
  SECONDS,
  WANTED,
  Blocks,
  cut,
)
from lora_opt.data.sources._rows import Row, Rows, file_facts
from lora_opt.reading import values
from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.copies import local_copy
from lora_opt.reading.files import inside
from lora_opt.reading.json_text import parse_json, read_json
from lora_opt.reading.lines import LONGEST
from lora_opt.reading.values import shown

# As in train-00000-of-00002.parquet; repositories add a digest after it.
_PART = re.compile(r'-(\d{1,9})-of-(\d{1,9})(-[0-9a-f]+)?\.\w+')


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFace(Rows):
  """A split in a folder of Hugging Face `datasets`, read with pyarrow alone.

  Two forms are supported: what `save_to_disk` writes (`data-*.arrow`), and a
  clone of a data set repository (parquet files whose names begin with that of
  the split, such as train-00000-of-00001.parquet, in the folder itself or in
  data/).

  Rows are read a few hundred at a time, in a separate process, since a damaged
  file may crash pyarrow. Values are given for texts, numbers, booleans, and
  lists and structures of them; for other columns (times, images) only the type.

  Args:
    folder: the folder of the data set, or of one configuration of it; or the
      name of a set of parquet files on the hub, see `lora_opt.data.hub`.
    split: name of the split, such as 'train'.
    limit: use the first `limit` rows only.
    longest: bytes that a row may have, as JSON; a longer one raises a
      ValueError, as does one with text that is not UTF-8.

  Raises (at first use):
    FileNotFoundError: there is no such folder, or no such split in it.
    ValueError: the files are damaged, or some are missing. Damage that is found
      only when a row is accessed raises an OSError.
  """

  folder: str
  split: str
  limit: int | None = None
  longest: int = LONGEST

  @property
  def title(self) -> str:
    return f'{self.folder} split {self.split!r}'

  def facts(self) -> dict[str, Any]:
    """The files, their sizes and their SHA-256."""
    return {'split': self.split, 'files': file_facts(*self._files)}

  def class_names(self, field: str) -> tuple[str, ...] | None:
    """The names that `datasets` gives the numbers in a field; None if none."""
    return self._class_names.get(field)

  @functools.cached_property
  def _class_names(self) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in self._files:
      try:
        text = self._process('features', str(path))
      except ConfinedError as error:
        raise ValueError(f'{path}: damaged file: {cut(error)}') from None
      for field, names in _labels(text, f'{path}: its features').items():
        if found.setdefault(field, names) != names:
          raise ValueError(
            f'{path}: the labels of {field!r} are {shown(names)}, and in '
            f'another file of the split {shown(found[field])}'
          )
    return found

  @functools.cached_property
  def _files(self) -> list[pathlib.Path]:
    folder = hub.data_folder(local_copy(self.folder), self.split)
    folder = folder.absolute()
    state = folder / self.split / 'state.json'
    if state.is_file():
      return _named_files(state)
    for place in (folder, folder / 'data'):
      files = sorted(
        path
        for end in ('-*.parquet', '.parquet')
        for path in place.glob(glob.escape(self.split) + end)
      )
      if files:
        _check_parts(files)
        return files
    raise FileNotFoundError(
      f'{folder} holds no split {self.split!r}: looked for '
      f'{self.split}/state.json (of save_to_disk) and {self.split}-*.parquet'
    )

  @functools.cached_property
  def _process(self) -> Confined:
    # Arrow files are memory-mapped, which counts towards the limit.
    largest = max(path.stat().st_size for path in self._files)
    return _process(MEMORY + 2**30 * -(-largest // 2**30))

  @functools.cached_property
  def _starts(self) -> list[int]:
    """The index of the first row of each file, then the number of all rows."""
    counts = []
    for path in self._files:
      left = None if self.limit is None else self.limit - sum(counts)
      if left is not None and left <= 0:
        break
      try:
        counts.append(self._process('count', str(path), left))
      except ConfinedError as error:
        raise ValueError(f'{path}: damaged file: {cut(error)}') from None
    return list(itertools.accumulate(counts, initial=0))

  def _load(self) -> Blocks:
    return Blocks(self._starts[-1], self._read)

  def _read(self, index: int) -> list[Row | ValueError]:
    number = bisect.bisect_right(self._starts, index) - 1
    path, start = self._files[number], index - self._starts[number]
    try:
      reply = self._process('rows', str(path), start, WANTED, self.longest)
    except ConfinedError as error:
      # Not a ValueError, since it does not concern a single row.
      raise OSError(f'{path}: damaged file: {cut(error)}') from None
    found = json.loads(reply)
    unread = {name: Unread(kind) for name, kind in found['unread'].items()}
    return [
      ValueError(f'{path} row {start + place}: {row}')
      if isinstance(row, str)
      else dict(zip(found['names'], row, strict=True)) | unread
      for place, row in enumerate(found['rows'])
    ]


@functools.cache
def _process(memory: int) -> Confined:
  """One process for all sources, since it takes a second to start."""
  file = pathlib.Path(__file__).with_name('_arrow_process.py')
  return Confined(file, 'work', seconds=SECONDS, memory=memory)


@dataclasses.dataclass(frozen=True)
class Unread:
  """Stands for a value whose type is not read."""

  type: str


def _labels(text: str, place: str) -> dict[str, tuple[str, ...]]:
  """The label names of each field for which `datasets` has them."""
  if not text:
    return {}
  info = values.table(parse_json(text, place), place).get('info') or {}
  columns = values.table(info, place).get('features') or {}
  return {
    name: tuple(
      values.text(item, place) for item in values.items(kind['names'], place)
    )
    for name, kind in values.table(columns, place).items()
    if isinstance(kind, dict)
    and kind.get('_type') == 'ClassLabel'
    and kind.get('names') is not None
  }


def _named_files(state: pathlib.Path) -> list[pathlib.Path]:
  """The files that a state.json of `save_to_disk` names."""
  facts = read_json(state)
  if facts.get('_indices_data_files'):
    raise ValueError(
      f'{state}: the rows are a selection of those in the files. Apply '
      'flatten_indices() before save_to_disk()'
    )
  files = []
  for entry in values.items(facts.get('_data_files'), f'{state}: _data_files'):
    entry = values.table(entry, f'{state}: an entry of _data_files')
    file = inside(state.parent, entry.get('filename'), str(state))
    if not file.is_file():
      raise FileNotFoundError(f'{state} names {file.name}, which is not there')
    files.append(file)
  if not files or len(set(files)) < len(files):
    raise ValueError(f'{state}: _data_files names no file, or one twice')
  return files


def _check_parts(files: Sequence[pathlib.Path]) -> None:
  """Raises ValueError unless each part of a set is there exactly once."""
  parts = [_PART.search(file.name) for file in files]
  if not all(parts):
    return
  totals = {int(part[2]) for part in parts}
  numbers = sorted(int(part[1]) for part in parts)
  if numbers != list(range(len(files))) or totals != {len(files)}:
    raise ValueError(
      f'{files[0].parent}: {files[0].name} and those like it, {len(files)} in '
      f'all, are not the parts 0 to {min(totals) - 1} of one set'
    )
