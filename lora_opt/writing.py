"""Writes files atomically: readers see the old or the new one, never a half.

A file is written under a unique temporary name and then replaces the existing
file. If a symbolic link exists under the final name, the link is replaced; its
target, which may belong to anyone, is not touched. Text is UTF-8, whatever the
locale. In a bucket a file is an object, which is uploaded once it is complete.
This module needs only the standard library, unless a path is in a bucket.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from lora_opt.buckets.paths import is_bucket, put_file


def write_text(file: str | os.PathLike, text: str) -> None:
  """Writes a text file; its folder is created if it is missing.

  Args:
    file: The file to write; replaced if it exists.
    text: The new content. A lone surrogate, which a model's answer may contain,
      cannot be encoded as UTF-8 and becomes U+FFFD.

  Raises:
    OSError: The file cannot be written. An existing file is then unchanged.

  >>> import tempfile
  >>> file = pathlib.Path(tempfile.mkdtemp()) / 'new/é.txt'
  >>> write_text(file, 'é')
  >>> file.read_bytes()
  b'\\xc3\\xa9'
  """
  try:
    data = text.encode()
  except UnicodeEncodeError:
    pairs = text.encode('utf-16', 'surrogatepass')
    data = pairs.decode('utf-16', 'replace').encode()
  write_bytes(file, data)


def write_bytes(file: str | os.PathLike, data: bytes) -> None:
  """Writes a file of bytes, atomically as `write_text` does.

  Raises:
    OSError: The file cannot be written. An existing file is then unchanged.
  """
  with draft(file) as part:
    part.write_bytes(data)


@contextlib.contextmanager
def draft(file: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields the path of a new, empty file that becomes `file` on success.

  For libraries that write to a path. The folder is created if it is missing.
  After an error in the body the new file is removed.

  Args:
    file: The file to replace at the end.

  Raises:
    OSError: The file cannot be written. An existing file is then unchanged.
  """
  if is_bucket(file):
    with tempfile.TemporaryDirectory(prefix='lora_opt_') as folder:
      part = pathlib.Path(folder, 'part')
      part.touch()
      yield part
      put_file(part, file)
    return
  file = pathlib.Path(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  part = _unused(file)
  # O_EXCL fails if the name exists already, so no link is followed.
  os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
  try:
    yield part
    part.replace(file)
  except BaseException:
    part.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def draft_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields the path of a new, empty folder that becomes `folder` on success.

  Args:
    folder: Must not exist, or must be empty: nothing is ever removed for it.

  Raises:
    OSError: It cannot be written, or it exists and is not empty.
  """
  folder = pathlib.Path(folder)
  part = _unused(folder)
  part.mkdir(parents=True)
  try:
    yield part
    part.rename(folder)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)  # created here, not by anyone else
    raise


def append(file: str | os.PathLike) -> BinaryIO:
  """Opens a file for reading and appending.

  Args:
    file: Created if it is missing.

  Raises:
    OSError: It is a symbolic link, or cannot be written.
  """
  flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
  try:
    return os.fdopen(os.open(file, flags, 0o666), 'ab+')
  except OSError as error:
    if error.errno == errno.ELOOP:
      raise OSError(
        f'{file} is a link to {os.readlink(file)}, which is not written to; '
        'remove the link'
      ) from None
    raise


def file_name(name: str) -> str:
  """Turns a name chosen by a user, such as a task's, into a safe file name.

  Different names stay different, on disks that distinguish upper and lower
  case. Names of letters, digits, spaces and common punctuation stay as they
  are. The result is never empty, nor `.` or `..`.

  >>> file_name('cola 2'), file_name('../a'), file_name('..')
  ('cola 2', '..%2Fa', '%2E%2E')
  """
  if not name.strip('.'):
    return ''.join(map(_code, name)) or '%'
  found = ''.join(
    c if c.isalnum() or c in ' _-.,+()=' else _code(c) for c in name
  )
  if len(found.encode()) <= 200:
    return found
  digest = hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()
  return f'{found.encode()[:150].decode(errors="ignore")}%{digest[:32]}'


def _code(character: str) -> str:
  data = character.encode('utf-8', 'surrogatepass')
  return ''.join(f'%{byte:02X}' for byte in data)


def print_anything() -> None:
  """Lets `print` write characters the terminal cannot encode as \\u escapes.

  Otherwise the first such character, say in the name of a task or folder, would
  end the program.
  """
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')


def _unused(path: pathlib.Path) -> pathlib.Path:
  """A unique, short name in the folder of `path`, however long its own is."""
  return path.with_name(f'.{secrets.token_hex(8)}.part')
