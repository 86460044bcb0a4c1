"""The TFDS builder for recipes: writes array_record without TensorFlow."""

import dataclasses
import pathlib
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from lora_opt.buckets import access
from lora_opt.buckets.paths import is_bucket, put_folder
from lora_opt.data.prepare.checking import checked_rows
from lora_opt.data.prepare.recipes import RECIPES, Recipe
from lora_opt.data.sources._rows import file_facts
from lora_opt.data.sources._tfds_folder import read_info
from lora_opt.reading.json_text import read_json

VERSION = '1.0.0'
_SHOWN = 3  # bad rows whose errors are reported
# Tensor rather than Sequence, which needs TensorFlow.
_FEATURES = {
  'text': tfds.features.Text,
  'texts': lambda: tfds.features.Tensor(shape=(None,), dtype=np.object_),
  'int': lambda: np.int64,
  'float': lambda: np.float32,
  'bool': lambda: np.bool_,
}


@dataclasses.dataclass(frozen=True)
class Split:
  """The number of prepared rows of a split."""

  num_examples: int


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The contents of the folder of a prepared data set.

  Attributes:
    data_dir: the folder.
    metadata: for each of its `splits`: the checksums of the raw files, the
      number of rows and how many were left out.
    splits: the splits by name.
  """

  data_dir: pathlib.Path
  metadata: Mapping[str, Any]
  splits: Mapping[str, Split]


def prepare(
  name: str,
  raw: pathlib.Path,
  data_dir: pathlib.Path,
  *,
  on_bad: str = 'error',
) -> Prepared:
  """Prepares one data set, unless it is already prepared.

  Args:
    name: a data set of `recipes.RECIPES`.
    raw: the folder with the publisher's files.
    data_dir: the folder to create `name`/1.0.0 in. If it is in a bucket, the
      result is uploaded once it is complete.
    on_bad: 'error' raises an error for the first row that cannot be used;
      'skip' leaves such rows out and records how many there were.

  Returns:
    The contents of the data set's folder.

  Raises:
    ValueError: the name is unknown, a row is bad (the message says where it is
      and what is wrong), a split has no good row, or a file is damaged as a
      whole.
    FileNotFoundError: a file of the publisher is missing; the message says
      which files are needed and where they come from.
  """
  if name not in RECIPES:
    raise ValueError(f'no recipe for {name!r}; there are {", ".join(RECIPES)}')
  done = data_dir / name / VERSION
  if (done / 'dataset_info.json').is_file():
    return _prepared(done)
  if is_bucket(data_dir):
    access.check_writing(data_dir, '--data_dir')
    with tempfile.TemporaryDirectory(prefix='lora_opt_') as home:
      found = prepare(name, raw, pathlib.Path(home), on_bad=on_bad)
      put_folder(found.data_dir, done)
    return _prepared(done)
  recipe = RECIPES[name]
  files = {split: _find(name, recipe, raw, split) for split in recipe.splits}
  # TFDS takes the name of the class as the name of the data set. It looks for
  # the files of the class's module unless that is __main__.
  kind = types.new_class(
    name,
    (_Builder,),
    {'skip_registration': True},
    lambda body: body.update(__module__='__main__', name=name),
  )
  builder = kind(
    recipe=recipe,
    files=files,
    on_bad=on_bad,
    data_dir=data_dir,
    file_format='array_record',
  )
  builder.download_and_prepare()
  return _prepared(done)


def _prepared(folder: pathlib.Path) -> Prepared:
  """Reads a folder without TFDS, which would import what the folder names."""
  splits = {
    name: Split(sum(shard.count for shard in shards))
    for name, shards in read_info(folder).splits.items()
  }
  return Prepared(folder, read_json(folder / 'metadata.json'), splits)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds a data set from the rows of a recipe."""

  VERSION = tfds.core.Version(VERSION)

  def __init__(
    self,
    *,
    recipe: Recipe,
    files: Mapping[str, tuple[pathlib.Path, ...]],
    on_bad: str,
    **kwargs,
  ):
    self._recipe, self._files, self._on_bad = recipe, files, on_bad
    self._counts: dict[str, dict[str, Any]] = {}
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    fields = self._recipe.fields
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'Prepared by lora_opt from {self._recipe.homepage}',
      features=tfds.features.FeaturesDict(
        {name: _FEATURES[kind]() for name, kind in fields.items()}
      ),
      homepage=self._recipe.homepage,
      license=self._recipe.licence,
      disable_shuffling=True,  # rows stay in the publisher's order
      metadata=tfds.core.MetadataDict(splits=self._counts),
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    return {
      split: self._rows(split, paths) for split, paths in self._files.items()
    }

  def _generate_examples(self):
    raise AssertionError('every split has its own generator')

  def _rows(self, split: str, paths: tuple[pathlib.Path, ...]) -> Iterator:
    rows = bad = 0
    first: list[str] = []
    for row in checked_rows(self._recipe, *paths):
      if not isinstance(row, ValueError):
        yield rows, row
        rows += 1
        continue
      if self._on_bad == 'error':
        raise row
      bad += 1
      if bad <= _SHOWN:
        first.append(str(row))
        logging.warning('left out: %s', row)
    if not rows:
      raise ValueError(
        f'split {split!r}: {paths[0]} holds no row that can be used'
        + (f', such as {first[0]}' if first else '')
      )
    self._counts[split] = {
      'raw_files': file_facts(*self._recipe.all_files(*paths)),
      'rows': rows,
      'bad_rows': bad,
      'first_bad_rows': first,
    }


def _find(
  name: str, recipe: Recipe, raw: pathlib.Path, split: str
) -> tuple[pathlib.Path, ...]:
  """The files of a split: those of the first alternative that exists."""
  for files in recipe.splits[split]:
    paths = tuple(raw / file for file in files)
    if all(path.is_file() for path in paths):
      return paths
  raise FileNotFoundError(
    f'{name}, split {split!r}: {raw} holds none of '
    + ' or '.join(' with '.join(files) for files in recipe.splits[split])
    + f'; they come from {recipe.homepage}'
  )
