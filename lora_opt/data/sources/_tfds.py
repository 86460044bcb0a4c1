"""Rows of a prepared TensorFlow Datasets split."""

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from typing import Any

from lora_opt.data.sources._rows import Row, Rows, plain


@dataclasses.dataclass(frozen=True, eq=False)
class Tfds(Rows):
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

  def facts(self) -> dict[str, Any]:
    """Name, version, split and what the builder recorded of its files."""
    info = self._builder.info
    return {
      'name': info.full_name,
      'version': str(info.version),
      'split': self.split,
      'folder': str(info.data_dir),
      'made_of': dict(info.metadata or {}),
    }

  def __getitem__(self, index: int) -> Row:
    row = super().__getitem__(index)
    return {
      field: plain(value, f'{self.where(index)}, field {field!r}')
      for field, value in row.items()
    }

  @functools.cached_property
  def _builder(self):
    import tensorflow_datasets as tfds  # only here: not every run needs it

    # From the files alone, without the code that once made them: that code may
    # be somebody's own, or need packages that are not here.
    load = tfds.core.read_only_builder.builder_from_files
    try:
      return load(self.name, data_dir=self.data_dir)
    except tfds.core.DatasetNotFoundError as error:
      raise self._not_prepared(
        tfds.list_builders(with_community_datasets=False)
      ) from error

  def _load(self) -> Sequence[Row]:
    builder = self._builder
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
