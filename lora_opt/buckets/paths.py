"""Paths of folders, local or in a bucket, and operations on them.

etils, fsspec and the package for each kind of bucket are imported only when a
bucket is named.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
from typing import Any

# The package that implements each kind of bucket for fsspec.
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
_PREFIXES = tuple(f'{scheme}://' for scheme in PACKAGES)
_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://')
_BUCKET = re.compile(r'[a-z0-9][a-z0-9._-]{1,220}')


def is_bucket(path: Any) -> bool:
  """Whether a path, given as a path object or a string, is in a bucket.

  >>> is_bucket('gs://bucket/run'), is_bucket(pathlib.Path('runs/a'))
  (True, False)
  """
  if not isinstance(path, str | os.PathLike):
    return False
  return os.fspath(path).startswith(_PREFIXES)


def as_path(name: str | os.PathLike, what: str = 'MODEL_DIR') -> pathlib.Path:
  """Converts a name to a path: a `pathlib.Path`, or an `epath.Path`.

  Args:
    name: a local path, 'gs://bucket/folder' or 's3://bucket/folder'.
    what: the setting that holds the name, for messages.

  Raises:
    ValueError: it is a URL of another scheme, it names no bucket, or the
      package for its scheme is not installed.

  >>> as_path('runs/a') == pathlib.Path('runs/a')
  True
  >>> as_path('gs://', 'DATA_DIR')
  Traceback (most recent call last):
  ...
  ValueError: DATA_DIR=gs://: '' names no bucket; write gs://BUCKET/FOLDER
  """
  text = os.fspath(name)
  scheme = _URL.match(text)
  if not scheme:
    return pathlib.Path(name)
  if scheme[1] not in PACKAGES:
    raise ValueError(
      f'{what}={text}: {scheme[0]} is not written to; buckets are gs:// and '
      's3://, everything else is a local folder'
    )
  bucket, *parts = text[scheme.end() :].split('/')
  if not _BUCKET.fullmatch(bucket):
    raise ValueError(
      f'{what}={text}: {bucket!r} names no bucket; write '
      f'{scheme[0]}BUCKET/FOLDER'
    )
  if '..' in parts or '.' in parts:
    raise ValueError(f'{what}={text}: write the folder without . and ..')
  check_package(scheme[1], f'{what}={text}')
  from etils import epath

  filesystem(text)  # configures fsspec before etils creates its own instance
  return epath.Path('/'.join([scheme[0] + bucket, *filter(None, parts)]))


def check_package(scheme: str, place: str) -> None:
  """Raises ValueError unless the package for 'gs' or 's3' is installed.

  Args:
    scheme: the scheme of the bucket.
    place: the setting and its value, for the message.
  """
  package = PACKAGES[scheme]
  missing = [
    name
    for name in ('etils', 'fsspec', package)
    if importlib.util.find_spec(name) is None
  ]
  if missing:
    raise ValueError(
      f'{place}: {scheme}:// needs {" and ".join(missing)}, which is not '
      "installed: pip install 'lora_opt[buckets]'"
    )


def filesystem(path: str | os.PathLike) -> Any:
  """The fsspec file system for a path in a bucket, one for each scheme."""
  return _filesystem(os.fspath(path).partition('://')[0])


@functools.cache
def _filesystem(scheme: str) -> Any:
  # If TensorFlow is installed, etils would use it for buckets, without the
  # settings below.
  os.environ['EPATH_USE_TF'] = 'false'
  import fsspec

  # A cached listing does not show what another process has written since. This
  # is set for all instances, because etils creates its own.
  name = {'gs': 'gcs'}.get(scheme, scheme)
  fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
  return fsspec.filesystem(name)


def put_file(file: str | os.PathLike, path: os.PathLike) -> None:
  """Uploads a local file as an object, replacing an existing one.

  Raises:
    OSError: It cannot be uploaded.
  """
  filesystem(path).put_file(os.fspath(file), os.fspath(path))


def put_folder(folder: pathlib.Path, path: pathlib.Path) -> None:
  """Uploads the files of a local folder; those that describe it come last.

  Readers of the folder of a model, an adapter or a data set look for a JSON
  file first. Once it exists, the other files exist too.

  Raises:
    OSError: A file cannot be uploaded.
  """
  files = [file for file in folder.rglob('*') if file.is_file()]
  files.sort(
    key=lambda file: (
      file.name == 'dataset_info.json',
      file.suffix == '.json',
      file,
    )
  )
  for file in files:
    put_file(file, path / file.relative_to(folder).as_posix())


def create(path: os.PathLike, data: bytes) -> None:
  """Creates an object, unless one of that name exists.

  The store does this atomically: if two processes try, only one succeeds.

  Raises:
    FileExistsError: The object exists.
    OSError: It cannot be created.
  """
  store, name = filesystem(path), os.fspath(path)
  try:
    store.pipe_file(name, data, mode='create')
  except Exception as error:
    # gcsfs and s3fs raise different errors for 412, precondition failed.
    if str(getattr(error, 'code', '')) == '412' or 'Precondition' in str(error):
      raise FileExistsError(f'{name} is there') from None
    raise


def stamp(path: os.PathLike) -> float:
  """When an object was last written, in seconds, by the clock of the store.

  Raises:
    FileNotFoundError: There is no such object.
  """
  return filesystem(path).modified(os.fspath(path)).timestamp()


def move(path: pathlib.Path, target: pathlib.Path) -> None:
  """Renames a file or a folder, creating the parent of the new name.

  In a bucket the objects are copied and then removed.
  """
  if is_bucket(path):
    # Not fsspec's `mv`: s3fs would also copy folders, which are not objects.
    store = filesystem(path)
    prefix = os.fspath(path).partition('://')[2]
    for name in store.find(prefix):
      store.cp_file(name, f'{target}{name[len(prefix) :]}')
    remove(path)
    return
  target.parent.mkdir(exist_ok=True)
  path.rename(target)


def remove(path: os.PathLike) -> None:
  """Removes a folder in a bucket and everything in it, if it exists."""
  with contextlib.suppress(FileNotFoundError):
    filesystem(path).rm(os.fspath(path), recursive=True)
