"""Checks and file writing for the launchers, using only the standard library.

Launchers run where the project's packages may be missing, as on a login node.
"""

import argparse
import contextlib
import fcntl
import json
import math
import os
import pathlib
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn


def whole(least: int, most: int = 10**6) -> Callable[[str], int]:
  """Makes a type for argparse: a whole number within bounds.

  >>> whole(1)('3')
  3
  >>> whole(1, 9)('-3')
  Traceback (most recent call last):
  ...
  argparse.ArgumentTypeError: expected a whole number from 1 to 9, not '-3'
  """

  def read(text: str) -> int:
    good = text.isascii() and text.lstrip('-').isdecimal() and len(text) < 12
    if not good or not least <= int(text) <= most:
      raise argparse.ArgumentTypeError(
        f'expected a whole number from {least} to {most}, not {text[:80]!r}'
      )
    return int(text)

  return read


def span(text: str) -> float:
  """A type for argparse: a time of zero or more.

  >>> span('0.5')
  0.5
  """
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise argparse.ArgumentTypeError(
      f'expected a number of at least 0, not {text[:80]!r}'
    )
  return value


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file whose content must be unambiguous.

  Raises:
    ValueError: It is not UTF-8 or not JSON, or has a key twice or a number that
      is not finite. The message names the file.
  """
  try:
    return json.loads(
      path.read_text(encoding='utf-8'),
      object_pairs_hook=_object,
      parse_float=_finite,
      parse_constant=_no_number,
    )
  except RecursionError:
    raise ValueError(f'{path}: nested too deep') from None
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'the key {twice[:80]!r} occurs twice')
  return found


def _finite(digits: str) -> float:
  if not math.isfinite(float(digits)):
    raise ValueError(f'the number {digits[:80]} is too large')
  return float(digits)


def _no_number(name: str) -> NoReturn:
  raise ValueError(f'{name} is not a number of JSON')


def is_plain(text: Any) -> bool:
  """Whether something is text without line ends and other control characters.

  >>> is_plain('a é'), is_plain('a\\nb'), is_plain(3)
  (True, False, False)
  """
  return isinstance(text, str) and (text == '' or text.isprintable())


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file atomically; does not follow links.

  Does the same as `lora_opt.writing`.
  """
  part = path.with_name(f'.{secrets.token_hex(8)}.part')
  try:
    with part.open('x', encoding='utf-8') as file:
      file.write(text)
    part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise


def append(path: pathlib.Path) -> BinaryIO:
  """Opens a log to append to it; refuses a link."""
  if path.is_symlink():
    raise OSError(f'{path} is a link, which is not written to; remove it')
  follow_none = getattr(os, 'O_NOFOLLOW', 0)
  return open(
    path, 'ab', opener=lambda p, flags: os.open(p, flags | follow_none, 0o666)
  )


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
  """Locks a folder, so that a second program cannot lock it too.

  The system releases the lock when the program ends, however it ends.

  Raises:
    OSError: Another program holds the lock; the message says which.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with append(folder / '.sweep.lock') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with open(file.name, encoding='utf-8', errors='replace') as said:
        holder = said.read(200).strip()
      raise OSError(f'{folder}: another sweep is under way, {holder}') from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n'.encode())
    file.flush()
    yield
