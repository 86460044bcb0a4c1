"""Files that are at every moment the old one or the new one, never half.

A file is written under a name that nothing else has, and then takes the place
of the one that was there. A link that stands in its place is replaced: what it
points to, which may be anyone's, is not touched. Text is UTF-8, whatever the
locale. In a bucket a file is an object, which is put once it is whole. The
standard library alone is needed here, until a bucket is named.
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
  """Writes a file of text; its folder is made if it is missing.

  Args:
    file: Where to; replaced if it is there.
    text: What it is to hold. Half a surrogate pair, as a model's answer may
      have it, is not UTF-8, and becomes U+FFFD.

  Raises:
    OSError: It cannot be written. What was there then still is.

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
  """Writes a file as `write_text` does.

  Raises:
    OSError: It cannot be written. What was there then still is.
  """
  with draft(file) as part:
    part.write_bytes(data)


@contextlib.contextmanager
def draft(file: str | os.PathLike) -> Iterator[pathlib.Path]:
  """The path of a new, empty file that becomes `file` if all goes well.

  For what a library writes, which wants a path. The folder is made if it is
  missing; after an error in the body nothing is left.

  Args:
    file: What is replaced in the end.

  Raises:
    OSError: It cannot be written. What was there then still is.
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
  # Made here, and only if nothing is there: no link is followed.
  os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
  try:
    yield part
    part.replace(file)
  except BaseException:
    part.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def draft_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """The path of a new, empty folder that becomes `folder` if all goes well.

  Args:
    folder: Must not be there, or be empty: nothing is ever removed for it.

  Raises:
    OSError: It cannot be written, or something is there.
  """
  folder = pathlib.Path(folder)
  part = _unused(folder)
  part.mkdir(parents=True)
  try:
    yield part
    part.rename(folder)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)  # made here, and by us alone
    raise


def append(file: str | os.PathLike) -> BinaryIO:
  """Opens a file to read it and to write behind what it holds.

  Args:
    file: Made if it is missing.

  Raises:
    OSError: It is a link, or cannot be written.
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
  """A user's name, of a task say, as the name of one file in a folder.

  Different names stay different; those of letters, digits, spaces and the
  usual signs stay as they are.

  >>> file_name('cola 2'), file_name('../a')
  ('cola 2', '..%2Fa')
  """
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
  """Lets `print` write what the terminal's encoding lacks as \\u escapes.

  Else the first such letter, of a task's or folder's name, ends the program.
  """
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')


def _unused(path: pathlib.Path) -> pathlib.Path:
  """A name beside `path` that nobody else has, however long its own is."""
  return path.with_name(f'.{secrets.token_hex(8)}.part')
