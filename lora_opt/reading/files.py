"""Reads text and binary files: UTF-8, bounded size, inside their folder."""

import os
import pathlib
from typing import Any

from lora_opt.buckets.paths import is_bucket
from lora_opt.reading.values import shown

MOST_BYTES = 2**28


def check_file(file: pathlib.Path) -> int:
  """Returns the size in bytes of a file that can be opened without blocking.

  Raises:
    FileNotFoundError: There is no such file, or it is a broken link.
    ValueError: It is a folder, a device or a named pipe.
  """
  if not file.exists():
    if not is_bucket(file) and file.is_symlink():
      raise FileNotFoundError(f'{file} is a link that leads nowhere')
    raise FileNotFoundError(f'no {file.name} in {file.parent}')
  if not file.is_file():
    kind = 'a folder' if file.is_dir() else 'a device or a pipe'
    raise ValueError(f'{file} is {kind}, not a file')
  return size_of(file)


def size_of(file: pathlib.Path) -> int:
  """The size in bytes of an existing file, local or in a bucket."""
  facts = file.stat()
  return facts.length if is_bucket(file) else facts.st_size


def read_bytes(file: pathlib.Path, *, most: int = MOST_BYTES) -> bytes:
  """Reads a whole file, if it is a regular file and not too long.

  Raises:
    FileNotFoundError: There is no such file.
    OSError: It cannot be read.
    ValueError: It is a folder or a device, or has more than `most` bytes.
  """
  check_file(file)
  try:
    with file.open('rb') as stream:
      data = stream.read(most + 1)
  except OSError as error:
    raise OSError(f'{file} cannot be read: {error.strerror}') from error
  if len(data) > most:
    size = size_of(file)
    raise ValueError(f'{file} has {size:,} bytes, at most {most:,} are read')
  return data


def read_text(file: pathlib.Path, *, most: int = MOST_BYTES) -> str:
  """Reads a text file in UTF-8; a byte order mark is dropped.

  Raises:
    FileNotFoundError, OSError: As for `read_bytes`.
    ValueError: As for `read_bytes`, or it is not UTF-8.
  """
  data = read_bytes(file, most=most)
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{file}: not UTF-8: byte {data[error.start]:#04x} at position '
      f'{error.start}. Convert the file to UTF-8'
    ) from None


def inside(folder: pathlib.Path, name: Any, named_by: str) -> pathlib.Path:
  """The path of a file that another file names, which must be in `folder`.

  Links may lead outside the folder, since model caches consist of links.

  Args:
    folder: The folder that must contain the file, directly or in a subfolder.
    name: The relative path of the file, as the other file gives it.
    named_by: The other file, for the message.

  Raises:
    ValueError: It is not the path of a file inside the folder.

  >>> inside(pathlib.Path('model'), 'a/b.bin', 'index.json').as_posix()
  'model/a/b.bin'
  >>> inside(pathlib.Path('model'), '../b.bin', 'index.json')
  Traceback (most recent call last):
  ...
  ValueError: index.json: '../b.bin' is not the path of a file inside model
  """
  parts = pathlib.PurePosixPath(name).parts if isinstance(name, str) else ()
  if (
    not parts
    or '..' in parts
    or '\0' in name
    or '\\' in name
    or pathlib.PurePosixPath(name).is_absolute()
    or os.path.splitdrive(name)[0]
  ):
    raise ValueError(
      f'{named_by}: {shown(name)} is not the path of a file inside {folder}'
    )
  return folder.joinpath(*parts)
