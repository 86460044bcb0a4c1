"""Checks at the start of a run that a bucket can be written and read.

Otherwise a missing bucket, missing credentials or a store that does not answer
would only be noticed at the first checkpoint.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import secrets
import threading
from collections.abc import Callable
from typing import Any

from lora_opt.buckets.paths import filesystem

# Seconds. The packages themselves keep retrying for longer.
PATIENCE = 30.0
_WAYS = {
  'gs': (
    'gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS'
  ),
  's3': 'AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
}


def check_writing(folder: pathlib.Path, what: str) -> None:
  """Writes an object, reads it back and removes it.

  Args:
    folder: a folder in a bucket.
    what: the setting that names the folder, for messages.

  Raises:
    OSError: a step failed, or it took longer than `PATIENCE`.
  """
  place = f'{what}={folder}'
  bucket = '/'.join(os.fspath(folder).split('/')[:3])

  def attempt():
    store = filesystem(folder)
    # Checked before writing: s3fs would create a missing bucket.
    if not store.exists(bucket):
      raise FileNotFoundError(f'there is no bucket {bucket}')
    probe, data = f'{folder}/.{secrets.token_hex(8)}.part', b'written'
    store.pipe_file(probe, data)
    try:
      if store.cat_file(probe) != data:
        raise OSError('what is read there is not what was written')
    finally:
      store.rm_file(probe)

  _within_patience(attempt, place, 'written')


def check_reading(folder: pathlib.Path, what: str) -> None:
  """Checks that a folder exists in a bucket and can be listed.

  Raises:
    OSError: it cannot be read, or it took longer than `PATIENCE`.
  """

  def attempt():
    if not filesystem(folder).exists(os.fspath(folder)):
      raise FileNotFoundError('there is nothing of that name')

  _within_patience(attempt, f'{what}={folder}', 'read')


def _within_patience(
  attempt: Callable[[], None], place: str, done: str
) -> None:
  result: concurrent.futures.Future[None] = concurrent.futures.Future()

  def run():
    try:
      attempt()
    except BaseException as error:
      result.set_exception(error)
    else:
      result.set_result(None)

  # A daemon thread, so that the program can exit while it still hangs.
  threading.Thread(target=run, daemon=True).start()
  ways = _WAYS[place.partition('=')[2].partition('://')[0]]
  try:
    result.result(PATIENCE)
  except TimeoutError:
    if not result.done():
      raise OSError(
        f'{place} cannot be {done}: its store has not answered for '
        f'{PATIENCE:.0f} s. Is there a network, and are there credentials '
        f'({ways})?'
      ) from None
    raise OSError(f'{place} cannot be {done}: it takes too long') from None
  except Exception as error:
    raise OSError(
      f'{place} cannot be {done}: {reason(error)}. Credentials are looked for '
      f'as the package for it does ({ways})'
    ) from error


def reason(error: BaseException) -> str:
  """The first line of an error's message, or its type if it has none."""
  text = str(error).strip() or type(error).__name__
  with contextlib.suppress(Exception):
    text = text.splitlines()[0]
  return text[:300].rstrip('.')


def is_of_a_store(error: Any) -> bool:
  """Whether an error comes from one of the packages that access buckets."""
  names = {kind.__module__.split('.')[0] for kind in type(error).__mro__}
  return not names.isdisjoint(
    ('gcsfs', 'aiohttp', 'botocore', 'google', 'aiobotocore')
  )
