"""The TFDS builder of all recipes: array_record files, without TensorFlow."""

import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from lora_opt.data.prepare.recipes import RECIPES, Recipe
from lora_opt.data.sources._rows import file_facts

VERSION = '1.0.0'
# Tensor, and not Sequence: the latter needs TensorFlow.
_FEATURES = {
  'text': tfds.features.Text,
  'texts': lambda: tfds.features.Tensor(shape=(None,), dtype=np.object_),
  'int': lambda: np.int64,
  'float': lambda: np.float32,
  'bool': lambda: np.bool_,
}
_TYPES = {'text': str, 'texts': list, 'int': int, 'float': float, 'bool': bool}


def prepare(
  name: str,
  raw: pathlib.Path,
  data_dir: pathlib.Path,
  *,
  on_bad: str = 'error',
) -> tfds.core.DatasetInfo:
  """Prepares one data set, unless that is done already.

  Args:
    name: a data set of `recipes.RECIPES`.
    raw: the folder with the publisher's files.
    data_dir: where `name`/1.0.0 is to be.
    on_bad: 'error' refuses the first row that cannot be used, 'skip' leaves
      them out and records how many.

  Returns:
    What TFDS says of it. Its metadata holds the checksums of the raw files,
    the rows of each split and how many were left out.

  Raises:
    ValueError: an unknown name, or a bad row: its place and what is wrong.
    FileNotFoundError: a file of the publisher is missing; which are needed and
      where they come from.
  """
  if name not in RECIPES:
    raise ValueError(f'no recipe for {name!r}; there are {", ".join(RECIPES)}')
  done = data_dir / name / VERSION
  if (done / 'dataset_info.json').is_file():
    return tfds.builder_from_directory(str(done)).info
  recipe = RECIPES[name]
  files = {split: _find(name, recipe, raw, split) for split in recipe.splits}
  # The name of the class is that of the data set to TFDS, which looks for the
  # files of a real module unless it is __main__.
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
  return builder.info


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Rows of a recipe."""

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
    recipe, count = self._recipe, 0
    problems: list[str] = []
    for place, raw in recipe.read(*paths):
      try:
        row = _checked(recipe, raw)
      except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        problem = f'{place}: {type(error).__name__} {error}'
        if self._on_bad == 'error':
          raise ValueError(problem) from error
        problems.append(problem)
        continue
      yield count, row
      count += 1
    for problem in problems[:3]:
      logging.warning('left out: %s', problem)
    self._counts[split] = {
      'raw_files': file_facts(*recipe.all_files(*paths)),
      'rows': count,
      'bad_rows': len(problems),
      'first_bad_rows': problems[:3],
    }


def _checked(recipe: Recipe, raw: Any) -> dict[str, Any]:
  """Our row, every field of it of the right type and no text empty."""
  if isinstance(raw, ValueError):
    raise raw
  row = recipe.row(raw)
  for name, kind in recipe.fields.items():
    value = row[name]
    texts = value if kind == 'texts' else [value] if kind == 'text' else []
    if not isinstance(value, _TYPES[kind]) or not all(
      isinstance(text, str) for text in texts
    ):
      raise ValueError(f'field {name!r} must be {kind}, found {value!r}')
  return row


def _find(
  name: str, recipe: Recipe, raw: pathlib.Path, split: str
) -> tuple[pathlib.Path, ...]:
  """The files of a split, as the first alternative that is there names them."""
  for files in recipe.splits[split]:
    paths = tuple(raw / file for file in files)
    if all(path.is_file() for path in paths):
      return paths
  raise FileNotFoundError(
    f'{name}, split {split!r}: {raw} holds none of '
    + ' or '.join(' with '.join(files) for files in recipe.splits[split])
    + f'; they come from {recipe.homepage}'
  )
