"""Sources: random-access sequences of plain dict rows.

A task takes one source for training and one for evaluation. Any sequence of
dicts is a source; those here read files, generate puzzles or open prepared
TFDS data sets. All are loaded on first use, so that setting one up (from a
configuration, say) is free, and all say in words where a row came from:

  source.where(3)  ->  'arc_easy/train.jsonl:4'
"""

import dataclasses
import difflib
import functools
import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def where(source: Sequence[Row], index: int, split: str = 'data') -> str:
  """Says in words where row `index` of `source` came from.

  Args:
    source: a source of this module, or any sequence of dicts.
    index: position of the row, from 0.
    split: what to call a source that has no name of its own.

  Returns:
    For example 'train.jsonl:4' (files count lines from 1).

  >>> where([{'question': 'Why?'}], 0, split='train')
  'train row 0'
  """
  if hasattr(source, 'where'):
    return source.where(index)
  return f'{split} row {index}'


class _Rows(Sequence):
  """A source whose rows are loaded once, at first use.

  A subclass has a `title`, a `limit` and a method `_load` that gives the rows.
  """

  @functools.cached_property
  def _rows(self) -> Sequence[Row]:
    limit = self.limit
    if limit is not None and (not isinstance(limit, int) or limit < 1):
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
    return self._rows[index]

  def where(self, index: int) -> str:
    """Says in words where row `index` came from."""
    return f'{self.title} row {index}'


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines(_Rows):
  """Rows of a file that holds one JSON object a line (UTF-8).

  Every line is checked when the first row is asked for, and the rows are kept
  in memory.

  Args:
    file: the file, relative to `folder`.
    folder: where the file is; a configuration sets this once for all files.
    limit: use the first `limit` rows only.

  Raises (at first use):
    FileNotFoundError: there is no such file.
    ValueError: a line is no JSON object, or there is no line at all.
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
    """File and line of row `index`: there are no blank lines to skip."""
    return f'{self.path}:{index + 1}'

  def _load(self) -> list[Row]:
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
      self._parse(line, self.where(number)) for number, line in enumerate(lines)
    ]

  def _parse(self, line: bytes, place: str) -> Row:
    try:
      row = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{place}: not UTF-8: byte {line[error.start]:#04x} at position '
        f'{error.start}. Convert the file to UTF-8'
      ) from error
    except json.JSONDecodeError as error:
      raise ValueError(
        f'{place}: not JSON: {error.msg} at column {error.colno}, found '
        f'{_shorten(line)}'
      ) from error
    if not isinstance(row, dict):
      raise ValueError(
        f'{place}: expected a JSON object, found {type(row).__name__} '
        f'{_shorten(line)}'
      )
    return row


class ReasoningGym(_Rows):
  """A procedural data set of `reasoning_gym`, with its own scorer.

  Row i is generated from the random seed `seed + i`: two sources of one data
  set whose ranges seed ... seed + size - 1 meet would share rows. Tasks check
  this; leave a wide gap between the seed for training and that for evaluation.

  Args:
    name: a data set of reasoning_gym, such as 'chain_sum'.
    size: number of rows.
    seed: seed of row 0.
    **config: settings of that data set, such as min_terms=2.

  Raises (at first use):
    ValueError: unknown data set or setting, or a setting out of range.
  """

  limit = None

  def __init__(self, name: str, *, size: int, seed: int, **config):
    if not isinstance(size, int) or size < 1:
      raise ValueError(f'ReasoningGym {name!r}: size={size!r} must be >= 1')
    self.name = name
    self.size = size
    self.seed = seed
    self.config = config

  def __repr__(self) -> str:
    settings = {'size': self.size, 'seed': self.seed, **self.config}
    listed = ', '.join(f'{key}={value!r}' for key, value in settings.items())
    return f'ReasoningGym({self.name!r}, {listed})'

  @property
  def title(self) -> str:
    return f'reasoning_gym {self.name!r} (seed {self.seed})'

  def score(self, prediction: str, row: Row) -> float:
    """Scores one answer by the data set's own rule, between 0 and 1."""
    try:
      return float(self._dataset.score_answer(prediction, row))
    except Exception:
      # Some scorers parse the answer and fail on text that is no answer.
      return 0.0

  def shared_rows(self, other: Sequence[Row]) -> int:
    """Number of rows that are in `other` too because the seeds meet."""
    if not isinstance(other, ReasoningGym) or self.name != other.name:
      return 0
    if self.config != other.config:
      return 0
    last = min(self.seed + self.size, other.seed + other.size)
    return max(0, last - max(self.seed, other.seed))

  @functools.cached_property
  def _dataset(self):
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      import reasoning_gym  # slow, and only here: not every run needs it
      from reasoning_gym.factory import DATASETS
    if self.name not in DATASETS:
      near = difflib.get_close_matches(self.name, DATASETS, n=5, cutoff=0.4)
      hint = f'near matches: {", ".join(near)}' if near else 'nothing is near'
      raise ValueError(
        f'reasoning_gym has no data set {self.name!r} ({hint}; it has '
        f'{len(DATASETS)} in all, see reasoning_gym.factory.DATASETS)'
      )
    settings = [
      field.name
      for field in dataclasses.fields(DATASETS[self.name][1])
      if field.name not in ('seed', 'size')
    ]
    unknown = sorted(set(self.config) - set(settings))
    if unknown:
      raise ValueError(
        f'reasoning_gym {self.name!r} has no setting {", ".join(unknown)}; it '
        f'has {", ".join(settings)}'
      )
    try:
      return reasoning_gym.create_dataset(
        self.name, size=self.size, seed=self.seed, **self.config
      )
    except (AssertionError, TypeError, ValueError) as error:
      raise ValueError(
        f'reasoning_gym {self.name!r} refuses {self.config}: {error}'
      ) from error

  def _load(self) -> list[Row]:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return [dict(self._dataset[index]) for index in range(self.size)]


@dataclasses.dataclass(frozen=True, eq=False)
class Tfds(_Rows):
  """A prepared TensorFlow Datasets split, read without TensorFlow.

  The data set must be stored as array_record: prepare it once with
  `tfds.builder(name, data_dir=..., file_format='array_record')
  .download_and_prepare()` (for which TFDS 4.9.10 also needs the package
  importlib_resources). Text comes back as str, arrays as lists.

  Args:
    name: data set, with its configuration if it has several:
      'ai2_arc/ARC-Easy'.
    split: 'train', or a slice of it: 'train[:90%]'.
    data_dir: folder with the prepared data sets.
    limit: use the first `limit` rows only.

  Raises (at first use):
    FileNotFoundError: there is no such data set prepared in `data_dir`.
    ValueError: unknown split, another file format, or text that is not UTF-8.
  """

  name: str
  split: str
  data_dir: str | None = None
  limit: int | None = None

  @property
  def title(self) -> str:
    return f'tfds {self.name!r} split {self.split!r}'

  def __getitem__(self, index: int) -> Row:
    row = super().__getitem__(index)
    return {
      field: _plain(value, f'{self.where(index)}, field {field!r}')
      for field, value in row.items()
    }

  def _load(self) -> Sequence[Row]:
    import tensorflow_datasets as tfds  # only here: not every run needs it

    # From the files alone, without the code that once made them: that code may
    # be somebody's own, or need packages that are not here.
    load = tfds.core.read_only_builder.builder_from_files
    try:
      builder = load(self.name, data_dir=self.data_dir)
    except tfds.core.DatasetNotFoundError as error:
      raise self._not_prepared(
        tfds.list_builders(with_community_datasets=False)
      ) from error
    try:
      return builder.as_data_source(self.split)
    except (ValueError, NotImplementedError) as error:
      raise ValueError(
        f'{self.title}: cannot be opened ({error}); the splits are '
        f'{", ".join(builder.info.splits)}, and the file format must be '
        f'array_record, not {builder.info.file_format}'
      ) from error

  def _not_prepared(self, known: Sequence[str]) -> FileNotFoundError:
    folder = self.data_dir or 'the default folder of TFDS'
    base = self.name.split('/')[0].split(':')[0]
    near = difflib.get_close_matches(base, known, n=5)
    if base in known:
      hint = (
        f"Prepare it once: tfds.builder({self.name!r}, data_dir='...', "
        "file_format='array_record').download_and_prepare()"
      )
    else:
      hint = 'TFDS itself has no such data set' + (
        f'; near matches: {", ".join(near)}' if near else ''
      )
    return FileNotFoundError(
      f'no prepared tfds {self.name!r} in {folder}. {hint}'
    )


def _shorten(line: bytes, length: int = 60) -> str:
  text = line.decode('utf-8', errors='replace')
  return repr(text if len(text) <= length else text[:length] + '...')


def _plain(value: Any, place: str) -> Any:
  """Turns bytes into text and arrays into lists, at any depth."""
  if isinstance(value, bytes):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(f'{place}: not UTF-8: {value[:60]!r}') from error
  if isinstance(value, Mapping):
    return {key: _plain(item, place) for key, item in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist(), place)
  if isinstance(value, list | tuple):
    return [_plain(item, place) for item in value]
  return value
