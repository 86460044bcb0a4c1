"""Folders of prepared TFDS data sets: where they are and what they declare."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_opt.reading import values
from lora_opt.reading.copies import local_copy
from lora_opt.reading.files import inside, read_text
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import shown

FORMAT = 'array_record'
_NAME = re.compile(
  r'(?P<name>[\w-]+)(/(?P<config>[\w.+-]+))?'
  r'(:(?P<version>(\d+|\*)\.(\d+|\*)\.(\d+|\*)))?'
)
_VERSION = re.compile(r'(\d{1,9})\.(\d{1,9})\.(\d{1,9})')
_LABELS = 2**22
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


def find_folder(name: str, data_dir: str | None) -> pathlib.Path | None:
  """The folder of the newest version of a data set; None if there is none.

  Args:
    name: 'set' or 'set/config', optionally followed by ':1.0.0'.
    data_dir: folder of the data sets; None for the one that TFDS uses.
  """
  parts = _NAME.fullmatch(name)
  if not parts:
    return None
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  base = local_copy(data_dir or default, parts['name']).absolute()
  home = base / parts['name']
  if parts['config']:
    return _newest(home / parts['config'], parts['version'])
  found = _newest(home, parts['version'])
  config = _default_config(home)
  if found or not config:
    return found
  return _newest(home / config, parts['version'])


def label_names(folder: pathlib.Path, field: str) -> tuple[str, ...] | None:
  """The names of the labels in a field; None if they are only numbers.

  Args:
    folder: folder of one version of a data set.
    field: name of a field of class labels.

  Raises:
    ValueError: the file that holds them is not UTF-8, or far too large.
  """
  name = field.replace('/', '-')
  file = inside(folder, f'{name}.labels.txt', f'{folder}, field {field!r}')
  if not file.is_file():
    return None
  lines = map(str.strip, read_text(file, most=_LABELS).split('\n'))
  return tuple(line for line in lines if line)


def _newest(home: pathlib.Path, version: str | None) -> pathlib.Path | None:
  """The folder of the newest version that matches a pattern like '1.*.*'."""
  found = [
    (tuple(map(int, numbers.groups())), path)
    for path in home.glob(version or '*.*.*')
    if (numbers := _VERSION.fullmatch(path.name))
    and (path / 'dataset_info.json').is_file()
  ]
  return max(found)[1] if found else None


def _default_config(home: pathlib.Path) -> str | None:
  file = home / '.config' / 'metadata.json'
  if not file.is_file():
    return None
  config = read_json(file).get('default_config_name')
  return config and inside(home, config, str(file)).name


class Shard(NamedTuple):
  """A file, and the number of records that it is declared to have."""

  path: pathlib.Path
  count: int


@dataclasses.dataclass(frozen=True)
class FolderInfo:
  """The contents of dataset_info.json.

  Attributes:
    name: name of the data set, with its configuration and version.
    version: the version alone.
    file_format: format of the files of records.
    splits: the files of each split.
  """

  name: str
  version: str
  file_format: str
  splits: Mapping[str, Sequence[Shard]]


def read_info(folder: pathlib.Path) -> FolderInfo:
  """Reads what a folder declares.

  Raises:
    FileNotFoundError: there is no dataset_info.json.
    ValueError: it is not a file of TFDS, or names files outside the folder.
  """
  file = folder / 'dataset_info.json'
  facts = read_json(file)

  def text(key: str, default: str | None = None) -> str:
    return values.text(facts.get(key, default), f'{file}: {key}')

  name, file_format = text('name'), text('fileFormat', 'tfrecord')
  splits = {}
  for entry in values.items(facts.get('splits'), f'{file}: splits'):
    entry = values.table(entry, f'{file}: an entry of splits')
    split = values.text(entry.get('name'), f'{file}: name of a split')
    if split in splits:
      raise ValueError(f'{file}: the split {shown(split)} occurs twice')
    splits[split] = _shards(file, name, file_format, split, entry)
  version = text('version')
  full = '/'.join(
    part for part in (name, text('configName', ''), version) if part
  )
  return FolderInfo(full, version, file_format, splits)


def _shards(
  file: pathlib.Path,
  name: str,
  file_format: str,
  split: str,
  entry: Mapping[str, Any],
) -> list[Shard]:
  place = f'{file}, split {shown(split)}'
  counts = values.items(entry.get('shardLengths'), f'{place}: shardLengths')
  template = values.text(
    entry.get('filepathTemplate', _TEMPLATE), f'{place}: filepathTemplate'
  )
  shards = []
  for number, count in enumerate(counts):
    names = {
      'DATASET': name,
      'SPLIT': split,
      'FILEFORMAT': file_format,
      'SHARD_INDEX': f'{number:05d}',
      'NUM_SHARDS': f'{len(counts):05d}',
      'SHARD_X_OF_Y': f'{number:05d}-of-{len(counts):05d}',
    }
    path = template
    for key, value in names.items():
      path = path.replace(f'{{{key}}}', value)
    shards.append(
      Shard(inside(file.parent, path, str(file)), _count(count, place))
    )
  if len({shard.path for shard in shards}) < len(shards):
    raise ValueError(
      f'{place}: filepathTemplate {shown(template)} gives several shards one '
      'name'
    )
  return shards


def _count(value: Any, place: str) -> int:
  """A number of records, which the JSON of protobuf writes as text."""
  if isinstance(value, str) and re.fullmatch(r'\d{1,15}', value, re.ASCII):
    value = int(value)
  return values.integer(value, f'{place}: shardLengths', 0, 2**40)
