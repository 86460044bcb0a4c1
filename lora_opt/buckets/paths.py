"""Names of folders as paths, local or in a bucket, and what is done with them.

etils, fsspec and what serves each kind of bucket are imported when a bucket is
named, and not before.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
from typing import Any

# The package of fsspec for each kind of bucket.
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
_PREFIXES = tuple(f'{scheme}://' for scheme in PACKAGES)
_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://')
_BUCKET = re.compile(r'[a-z0-9][a-z0-9._-]{1,220}')


def is_bucket(path: Any) -> bool:
  """Whether a path, or the text of one, is in a bucket.

  >>> is_bucket('gs://bucket/run'), is_bucket(pathlib.Path('runs/a'))
  (True, False)
  """
  if not isinstance(path, str | os.PathLike):
    return False
  return os.fspath(path).startswith(_PREFIXES)


def as_path(name: str | os.PathLike, what: str = 'MODEL_DIR') -> pathlib.Path:
  """The path that a text names: a `pathlib.Path`, or an `epath.Path`.

  Args:
    name: a local path, 'gs://bucket/folder' or 's3://bucket/folder'.
    what: the setting that holds it, for messages.

  Raises:
    ValueError: it is a URL of another kind, names no bucket, or the package
      that serves its kind is not installed.

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

  filesystem(text)  # before etils makes its own of it
  return epath.Path('/'.join([scheme[0] + bucket, *filter(None, parts)]))


def check_package(scheme: str, place: str) -> None:
  """Raises ValueError unless the package for 'gs' or 's3' is installed.

  Args:
    scheme: of the bucket.
    place: what is to be there, for the message.
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
  """The fsspec file system of a path in a bucket, one for each kind."""
  return _filesystem(os.fspath(path).partition('://')[0])


@functools.cache
def _filesystem(scheme: str) -> Any:
  # With TensorFlow installed etils would take that for buckets, without the
  # settings below.
  os.environ['EPATH_USE_TF'] = 'false'
  import fsspec

  # A listing that is kept does not show what another process has written since.
  # For all instances: etils makes its own.
  name = {'gs': 'gcs'}.get(scheme, scheme)
  fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
  return fsspec.filesystem(name)


def put_file(file: str | os.PathLike, path: os.PathLike) -> None:
  """Puts a local file as an object, in place of one that is there.

  Raises:
    OSError: It cannot be.
  """
  filesystem(path).put_file(os.fspath(file), os.fspath(path))


def put_folder(folder: pathlib.Path, path: pathlib.Path) -> None:
  """Puts the files of a local folder; those that say what is there, last.

  Readers of a folder of a model, an adapter or a data set look for a file of
  JSON first: where it is, the others are there too.

  Raises:
    OSError: One cannot be put.
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
  """Makes an object, if there is none of its name.

  The store decides it, at one place and one time: of two that try, one does.

  Raises:
    FileExistsError: There is one.
    OSError: It cannot be made.
  """
  store, name = filesystem(path), os.fspath(path)
  try:
    store.pipe_file(name, data, mode='create')
  except Exception as error:
    # gcsfs and s3fs have errors of their own for 412, precondition failed.
    if str(getattr(error, 'code', '')) == '412' or 'Precondition' in str(error):
      raise FileExistsError(f'{name} is there') from None
    raise


def stamp(path: os.PathLike) -> float:
  """When an object was last written, in seconds, by the clock of the store.

  Raises:
    FileNotFoundError: There is none.
  """
  return filesystem(path).modified(os.fspath(path)).timestamp()


def move(path: pathlib.Path, target: pathlib.Path) -> None:
  """Gives a file or a folder another name; its parent is made.

  In a bucket each object is copied and then removed.
  """
  if is_bucket(path):
    # Not `mv` of fsspec: s3fs would copy folders too, which are no objects.
    store = filesystem(path)
    prefix = os.fspath(path).partition('://')[2]
    for name in store.find(prefix):
      store.cp_file(name, f'{target}{name[len(prefix) :]}')
    remove(path)
    return
  target.parent.mkdir(exist_ok=True)
  path.rename(target)


def remove(path: os.PathLike) -> None:
  """Removes a folder of a bucket with all that is in it, if it is there."""
  with contextlib.suppress(FileNotFoundError):
    filesystem(path).rm(os.fspath(path), recursive=True)
