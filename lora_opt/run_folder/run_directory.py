"""MODEL_DIR: checks which run it belongs to, and writes files about the run."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lora_opt import writing
from lora_opt.buckets import access
from lora_opt.buckets.paths import as_path, is_bucket, move
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import shown
from lora_opt.run_folder import run_files
from lora_opt.run_folder.run_files import METRICS_FILE

# Settings that may change between a run and its continuation: they move files
# or decide how often something is shown, not what the run computes.
_FREE = (
  'CHECKPOINT_PERIOD',
  'DATA_DIR',
  'DATA_WORKERS',
  'EVAL_PERIOD',
  'KEEP_CHECKPOINTS',
  'LOG_PERIOD',
  'MODEL_DIR',
  'PROFILE_STEPS',
  # A run that met too many bad steps may go on with more patience.
  'SKIP_PATIENCE',
  'TRACKERS',
  # Settings of the partitioner: a run may resume on another machine.
  'DATA',
  'FSDP',
  'PARTITIONER',
  'RULES',
  'TENSOR',
  # Setting of a plan.
  'TOPOLOGY',
)
# Prefixes of settings that do not affect training, and so may all change.
_NOT_OF_TRAINING = ('plan.', 'run.', 'trackers.', 'WANDB_')
SETTINGS, IDENTITY = 'settings.json', 'identity.json'
_SPACE_NEEDED = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """The command and configuration of a run, for its folder and its report.

  Attributes:
    command: the command line that repeats the run.
    settings: every configured value by name; all starts in one MODEL_DIR must
      agree on those that affect training.
    config_text: the configuration as given.
    operative_config_text: returns the part of the configuration used so far.
  """

  command: str = ''
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
  config_text: str = ''
  operative_config_text: Callable[[], str] = str


def make(model_dir: str | os.PathLike) -> None:
  """Creates MODEL_DIR, and checks that a run can write there.

  Raises:
    OSError: it cannot be written, or its disk is full.
    ValueError: this locale cannot encode its name, or the package for its kind
      of bucket is not installed.
  """
  if not isinstance(model_dir, str | os.PathLike):
    raise ValueError(
      f'MODEL_DIR={model_dir!r} is not the name of a folder; quote a name that '
      'reads as something else: --gin.MODEL_DIR="\'2024\'"'
    )
  folder = as_path(model_dir)
  if is_bucket(folder):
    access.check_writing(folder, 'MODEL_DIR')
    return
  _check_name(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
      probe.write(b'x')
  except OSError as error:
    raise OSError(
      f'MODEL_DIR={folder} cannot be written: {error.strerror}; choose another '
      'folder or mend its permissions'
    ) from error
  free = shutil.disk_usage(folder).free
  if free < _SPACE_NEEDED:
    raise OSError(
      f'MODEL_DIR={folder}: only {free / 2**20:.0f} MiB are free on its disk, '
      f'{_SPACE_NEEDED / 2**20:.0f} are needed; make room or choose another'
    )


def _check_name(folder: pathlib.Path) -> None:
  """Raises ValueError for a name with characters the locale does not have.

  Python reads such characters as lone surrogates.
  """
  try:
    str(folder.absolute()).encode()
  except UnicodeEncodeError:
    raise ValueError(
      f'MODEL_DIR={shown(str(folder), 500)} has letters that are not text in '
      'this locale; set PYTHONUTF8=1 in the environment, or choose a folder '
      'whose name is ASCII'
    ) from None


def claim(model_dir: str | os.PathLike, record: RunRecord) -> None:
  """Claims MODEL_DIR for this run, or checks that it already belongs to it.

  Args:
    model_dir: see `make`.
    record: its settings are compared with those of an existing run.

  Raises:
    OSError: the folder has an adapter that no run in it has written, or a
      symbolic link in place of a file that a run writes.
    ValueError: the folder has another run's results, and the message says what
      differs; or the settings of the existing run cannot be read.
  """
  folder = as_path(model_dir)
  _check_links(folder)
  _check_no_adapter(folder)
  if has_results(folder):
    there = _settings_there(folder)
    if there is not None:
      _check_same_run(folder, there, record)
  write_json(folder / SETTINGS, dict(record.settings))
  writing.write_text(folder / 'config.gin', record.config_text)


def has_results(folder: pathlib.Path) -> bool:
  """Whether the folder has results that no other run may mix with its own."""
  results = ('checkpoints', 'evaluation/before.json')
  return any((folder / name).exists() for name in results)


def set_aside(folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
  """Moves a damaged file or folder to MODEL_DIR/damaged, for inspection.

  Args:
    folder: MODEL_DIR.
    path: the file or folder in it.

  Returns:
    The new path.
  """
  aside = folder / 'damaged' / path.name
  while aside.exists():
    aside = aside.with_name(aside.name + '_again')
  move(path, aside)
  return aside


def _settings_there(folder: pathlib.Path) -> dict[str, str] | None:
  """The settings of the existing run; None if they are not recorded."""
  path, copy = folder / SETTINGS, folder / IDENTITY
  try:
    return run_files.read_settings(path)
  except FileNotFoundError:
    problem = f'{path} is missing'
  except ValueError as error:
    problem = f'{path} is damaged: {error}'
  with contextlib.suppress(OSError, ValueError, KeyError):
    settings = run_files.texts(read_json(copy)['settings'], str(copy))
    print(f'{problem}. The copy in {copy} is used.', flush=True)
    return settings
  if path.exists():
    raise ValueError(
      f'{problem}. It says which settings the checkpoints belong to. If '
      f'{folder / "config.gin"} has those of this command, delete {path} and '
      'start again; otherwise choose another MODEL_DIR'
    )
  print(
    f'{problem}: whether the settings are those of the run that is there '
    'cannot be checked.',
    flush=True,
  )
  return None


def _check_links(folder: pathlib.Path) -> None:
  """Raises OSError for links in place of files that training writes to."""
  if is_bucket(folder):
    return  # buckets have no links
  for name in ('adapter', METRICS_FILE):
    path = folder / name
    if path.is_symlink():
      raise OSError(
        f'{path} is a link to {os.readlink(path)}: the run would write to what '
        'lies there. Remove the link, or choose another MODEL_DIR'
      )


def _check_no_adapter(folder: pathlib.Path) -> None:
  """Raises OSError for an adapter that no run in this folder has written."""
  adapter = folder / 'adapter'
  if (folder / 'checkpoints').exists() or (folder / 'run.json').exists():
    return
  if adapter.exists() and (not adapter.is_dir() or any(adapter.iterdir())):
    raise OSError(
      f'{adapter} is there already, and no run in MODEL_DIR={folder} wrote it: '
      'training would write its own adapter over it. Move it elsewhere, or '
      'choose another MODEL_DIR'
    )


def _check_same_run(
  folder: pathlib.Path, there: Mapping[str, str], record: RunRecord
) -> None:
  different = [
    f'  {_plain(name)}: there {_plain(there.get(name, "unset"))}, '
    f'here {record.settings.get(name, "unset")}'
    for name in sorted({*there, *record.settings})
    if name.rpartition('.')[2].upper() not in _FREE
    and not name.startswith(_NOT_OF_TRAINING)
    and there.get(name) != record.settings.get(name)
  ]
  if different:
    raise ValueError(
      f'MODEL_DIR={folder} holds another run:\n'
      + '\n'.join(different)
      + '\nChoose another MODEL_DIR, use the settings of the run that is '
      'there, or delete the folder.'
    )


def _plain(text: str) -> str:
  """Makes text from a file safe to print in a terminal."""
  return shown(text, 200).strip('"\'')


def describe(
  folder: pathlib.Path, data: Mapping[str, Any], trees: Mapping[str, Any]
) -> None:
  """Writes dataset.json and model-info.txt; see `write_model_info`."""
  write_json(folder / 'dataset.json', data)
  write_model_info(folder, trees)


def write_model_info(folder: pathlib.Path, trees: Mapping[str, Any]) -> None:
  """Writes model-info.txt: every array's name, shape, bytes and placement.

  A placement such as PartitionSpec(None, 'fsdp') says along which mesh axis
  each axis of the array is split; PartitionSpec() means replicated everywhere.

  Args:
    folder: MODEL_DIR.
    trees: title -> pytree of arrays.
  """
  lines = []
  for title, tree in trees.items():
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    scalars = sum(leaf.size for _, leaf in leaves)
    total = sum(leaf.nbytes for _, leaf in leaves)
    held = sum(_bytes_on_a_device(leaf) for _, leaf in leaves)
    lines.append(
      f'# {title}: {len(leaves)} arrays, {scalars:,} scalars, {total:,} bytes, '
      f'{held:,} on each device'
    )
    for path, leaf in leaves:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      spec = getattr(leaf.sharding, 'spec', leaf.sharding)
      lines.append(
        f'{name}  {leaf.shape}  {leaf.dtype}  {leaf.nbytes:,} bytes  {spec}'
      )
    lines.append('')
  writing.write_text(folder / 'model-info.txt', '\n'.join(lines))


def _bytes_on_a_device(array: jax.Array) -> int:
  part = array.sharding.shard_shape(array.shape)
  return math.prod(part) * array.dtype.itemsize


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON atomically: readers see the old or the new file, never a half.

  >>> import tempfile
  >>> folder = pathlib.Path(tempfile.mkdtemp())
  >>> write_json(folder / 'a.json', {'x': 1})
  >>> read_json(folder / 'a.json')
  {'x': 1}

  Args:
    path: the file to write.
    value: a JSON-serialisable value; a number that is not finite, which JSON
      cannot represent, is written as null.
  """
  text = json.dumps(_finite(value), indent=1, ensure_ascii=False)
  writing.write_text(path, text + '\n')


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {key: _finite(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(each) for each in value]
  return value
