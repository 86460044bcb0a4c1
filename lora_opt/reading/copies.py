"""Local copies of folders in buckets, for code that reads local files.

They are kept in ~/.cache/lora_opt/buckets (or the folder that the environment
variable LORA_OPT_BUCKET_CACHE names), under the name of the bucket. An object
is fetched when there is no copy yet or it has changed since it was fetched.
"""

import functools
import json
import os
import pathlib
from typing import Any

from lora_opt import writing
from lora_opt.buckets.paths import as_path, filesystem, is_bucket

VARIABLE = 'LORA_OPT_BUCKET_CACHE'
_NOTE = '.fetched.json'


def local_copy(
  folder: str | os.PathLike, inside: str = '', what: str = 'DATA_DIR'
) -> pathlib.Path:
  """A folder on a local disk: itself, or a copy of one in a bucket.

  Args:
    folder: a local folder, or one in a bucket.
    inside: the file or folder in it that will be read. Nothing else is fetched
      from a bucket.
    what: the setting that names the folder, for messages.

  Returns:
    The local path of `folder`.

  Raises:
    FileNotFoundError: nothing of that name is in the bucket, or there is no
      such bucket.
    OSError: it cannot be read.
    ValueError: as for `paths.as_path`.
  """
  if not is_bucket(folder):
    return pathlib.Path(as_path(folder, what)).expanduser()
  return _fetched(os.fspath(folder), inside, what)


@functools.cache  # files must not change while a process is reading them
def _fetched(folder: str, inside: str, what: str) -> pathlib.Path:
  source = as_path(folder, what)
  wanted = source / inside if inside else source
  scheme, _, name = os.fspath(source).partition('://')
  home = pathlib.Path(
    os.environ.get(VARIABLE) or pathlib.Path('~/.cache/lora_opt/buckets')
  ).expanduser()
  local = home / scheme / name
  _fetch(wanted, local / inside if inside else local, f'{what}={folder}')
  return local


def _fetch(source: pathlib.Path, target: pathlib.Path, place: str) -> None:
  """Makes `target` a copy of `source`, an object or a folder of objects."""
  store, text = filesystem(source), os.fspath(source)
  objects = store.find(text, detail=True)
  prefix = text.partition('://')[2]
  found = {
    name[len(prefix) :].lstrip('/'): facts
    for name, facts in objects.items()
    if facts['type'] == 'file' and not name.endswith('/')
  }
  if not found:
    raise FileNotFoundError(f'{place}: there is nothing in {source}')
  for name in found:
    if '..' in pathlib.PurePosixPath(name).parts or '\\' in name:
      raise ValueError(f'{place}: {name!r} is not the name of a file')
  note = target.with_name(f'{target.name}{_NOTE}')
  try:
    before = json.loads(note.read_text('utf-8'))
  except (OSError, ValueError):
    before = {}
  now = {name: _identity(facts) for name, facts in found.items()}
  new = [
    name
    for name, identity in now.items()
    if before.get(name) != identity
    or not (target / name if name else target).is_file()
  ]
  if new:
    size = sum(found[name]['size'] or 0 for name in new)
    print(
      f'{place}: {len(new)} files of {source} ({size / 2**20:,.1f} MiB) are '
      f'copied to {target}',
      flush=True,
    )
  # A file does not count as fetched while it is being replaced.
  kept = {name: now[name] for name in now if name not in new}
  if new or before != now:
    writing.write_text(note, json.dumps(kept))
  for name in new:
    with writing.draft(target / name if name else target) as part:
      store.get_file(f'{text}/{name}' if name else text, str(part))
  for name in before.keys() - now.keys():
    if name and '..' not in pathlib.PurePosixPath(name).parts:
      (target / name).unlink(missing_ok=True)
  if new or before != now:
    writing.write_text(note, json.dumps(now))


def _identity(facts: dict[str, Any]) -> str:
  """A text that changes when the object is replaced."""
  names = ('size', 'generation', 'etag', 'ETag', 'md5Hash', 'LastModified')
  return ' '.join(str(facts[name]) for name in names if name in facts)
