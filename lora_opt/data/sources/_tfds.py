"""Rows of a prepared TensorFlow Datasets split."""

import bisect
import dataclasses
import difflib
import functools
import itertools
import pathlib
import struct
from typing import Any

from lora_opt.data.sources import _tf_example, _tfds_folder
from lora_opt.data.sources._blocks import MEMORY, SECONDS, WANTED, Blocks, cut
from lora_opt.data.sources._rows import Row, Rows, file_facts
from lora_opt.data.sources._tfds_features import Features, read_features
from lora_opt.data.sources._tfds_splits import Piece, pieces
from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.json_text import read_json
from lora_opt.reading.lines import LONGEST


@dataclasses.dataclass(frozen=True, eq=False)
class Tfds(Rows):
  """A prepared TensorFlow Datasets split, read without TensorFlow or TFDS.

  The data set must be stored as array_record: prepare it once with
  `tfds.builder(name, data_dir=..., file_format='array_record')
  .download_and_prepare()` (for which TFDS 4.9.10 also needs the package
  importlib_resources). Text is returned as str, arrays as lists. Nothing that
  the folder names is imported. Fields that are neither text nor numbers (such
  as images) are left out, and `facts` names them.

  Args:
    name: data set, with its configuration if it has several:
      'ai2_arc/ARC-Easy'; a version may follow, such as ':1.0.0'.
    split: 'train', or a slice of it: 'train[:90%]'.
    data_dir: folder with the prepared data sets.
    limit: use the first `limit` rows only.
    longest: bytes that a record may have; a longer one raises a ValueError, as
      does one that does not hold what the features declare.

  Raises (at first use):
    FileNotFoundError: no such data set is prepared in `data_dir`, or one of its
      files is missing.
    ValueError: the split is unknown, the file format is another one, or the
      files do not have as many rows as declared. Damage that is found only when
      a row is accessed raises an OSError.
  """

  name: str
  split: str
  data_dir: str | None = None
  limit: int | None = None
  longest: int = LONGEST

  @property
  def title(self) -> str:
    return f'tfds {self.name!r} split {self.split!r}'

  def facts(self) -> dict[str, Any]:
    """What was read, its files, and the origin that the builder recorded."""
    made_of = self._folder / 'metadata.json'
    facts = {
      'name': self._info.name,
      'version': self._info.version,
      'split': self.split,
      'folder': str(self._folder),
      'files': file_facts(*dict.fromkeys(p.shard.path for p in self._pieces)),
      'made_of': read_json(made_of, most=2**24) if made_of.is_file() else {},
    }
    if self._features.unread:
      facts['not_read'] = dict(self._features.unread)
    return facts

  def class_names(self, field: str) -> tuple[str, ...] | None:
    """The names that TFDS gives the numbers in a field; None if it has none."""
    if field not in self._features.labels:
      return None
    return _tfds_folder.label_names(self._folder, field)

  @functools.cached_property
  def _folder(self) -> pathlib.Path:
    folder = _tfds_folder.find_folder(self.name, self.data_dir)
    if folder is None:
      raise self._not_prepared()
    return folder

  @functools.cached_property
  def _info(self) -> _tfds_folder.FolderInfo:
    return _tfds_folder.read_info(self._folder)

  @functools.cached_property
  def _features(self) -> Features:
    return read_features(self._folder / 'features.json')

  @functools.cached_property
  def _pieces(self) -> list[Piece]:
    """The parts of files that make up the split; each file is checked."""
    info = self._info
    title = f'{self._folder}, {self.title}'
    if info.file_format != _tfds_folder.FORMAT:
      raise ValueError(
        f'{title}: the file format must be {_tfds_folder.FORMAT}, not '
        f'{info.file_format}'
      )
    found, rows = [], 0
    for piece in pieces(self.split, info.splits, title):
      if self.limit is None or rows < self.limit:
        _check_count(piece.shard)
        found.append(piece)
        rows += piece.stop - piece.start
    return found

  @functools.cached_property
  def _starts(self) -> list[int]:
    """The index of the first row of each piece, then the number of all rows."""
    sizes = (piece.stop - piece.start for piece in self._pieces)
    return list(itertools.accumulate(sizes, initial=0))

  def _load(self) -> Blocks:
    _ = self._features  # errors in the features are raised first
    return Blocks(self._starts[-1], self._read)

  def _read(self, index: int) -> list[bytes | int]:
    """Records from an index on; only the sizes of those that are too long."""
    number = bisect.bisect_right(self._starts, index) - 1
    piece = self._pieces[number]
    start = piece.start + index - self._starts[number]
    wanted = min(WANTED, piece.stop - start)
    path = str(piece.shard.path)
    try:
      reply = _process()('records', path, start, wanted, self.longest)
    except ConfinedError as error:
      # Not a ValueError, since it does not concern a single row.
      raise OSError(f'{path}: damaged file: {cut(error)}') from None
    records, place = [], 0
    while place < len(reply):
      size, given = struct.unpack_from('<QQ', reply, place)
      place += 16
      records.append(size if given < size else reply[place : place + given])
      place += given
    return records

  def _row(self, index: int) -> Row:
    record = self._rows[index]
    try:
      if isinstance(record, int):
        raise ValueError(f'{record:,} bytes, at most {self.longest:,} are read')
      return self._features.row(_tf_example.parse(record))
    except ValueError as error:
      raise ValueError(f'{self.where(index)}, {error}') from None

  def _not_prepared(self) -> FileNotFoundError:
    import tensorflow_datasets as tfds  # slow, and only for the hint

    known = tfds.list_builders(with_community_datasets=False)
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


@functools.cache
def _process() -> Confined:
  file = pathlib.Path(__file__).with_name('_array_record_process.py')
  return Confined(file, 'work', seconds=SECONDS, memory=MEMORY)


def _check_count(shard: _tfds_folder.Shard) -> None:
  """Raises an error unless a file has the declared number of records."""
  if not shard.path.is_file():
    raise FileNotFoundError(f'{shard.path} is missing')
  try:
    count = _process()('count', str(shard.path))
  except ConfinedError as error:
    raise ValueError(f'{shard.path}: damaged file: {cut(error)}') from None
  if count != shard.count:
    raise ValueError(
      f'{shard.path}: damaged file: {count} records, and dataset_info.json '
      f'declares {shard.count}'
    )
