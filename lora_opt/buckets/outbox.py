"""What is written on a local disk and then put into a bucket."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from lora_opt.buckets.paths import is_bucket, put_file, put_folder


class Outbox:
  """A local folder whose files are those of a folder in a bucket.

  For files that grow, of which a bucket has none: each `put` puts those that
  have changed, whole. Of a local folder it is that folder, and does nothing.
  """

  def __init__(self, folder: pathlib.Path, *fetched: str):
    """Makes the folder.

    Args:
      folder: where the files are to be.
      *fetched: names of files that go on from what is there.
    """
    self._target = folder if is_bucket(folder) else None
    self._put: dict[pathlib.Path, tuple[int, int]] = {}
    if self._target is None:
      self.folder = folder
      folder.mkdir(parents=True, exist_ok=True)
      return
    self._temporary = tempfile.TemporaryDirectory(prefix='lora_opt_')
    self.folder = pathlib.Path(self._temporary.name)
    for name in fetched:
      if (folder / name).exists():
        file = self.folder / name
        file.write_bytes((folder / name).read_bytes())
        self._put[file] = _state(file)

  def put(self) -> None:
    """Puts what is new.

    Raises:
      OSError: It cannot be put.
    """
    if self._target is None:
      return
    for file in sorted(self.folder.rglob('*')):
      if not file.is_file() or file.name.startswith('.'):
        continue
      state = _state(file)
      if self._put.get(file) != state:
        name = file.relative_to(self.folder).as_posix()
        put_file(file, self._target / name)
        self._put[file] = state

  def close(self) -> None:
    """Puts what is new and removes the local folder."""
    if self._target is not None:
      self.put()
      self._temporary.cleanup()


@contextlib.contextmanager
def output_folder(
  folder: pathlib.Path, *, new: bool = False
) -> Iterator[pathlib.Path]:
  """A local folder to write to: itself, or one that is put into the bucket.

  Args:
    folder: what is to have the files in the end.
    new: there must be nothing there yet, in a bucket; elsewhere whoever writes
      looks.

  Raises:
    FileExistsError: there is something.
    OSError: it cannot be put.
  """
  if not is_bucket(folder):
    yield folder
    return
  if new and folder.exists():
    raise FileExistsError(f'{folder} is there already; remove it first')
  with tempfile.TemporaryDirectory(prefix='lora_opt_') as home:
    local = pathlib.Path(home) / folder.name
    yield local
    put_folder(local, folder)


def _state(file: pathlib.Path) -> tuple[int, int]:
  facts = file.stat()
  return facts.st_size, facts.st_mtime_ns
