"""Files that are written to a local disk and then uploaded to a bucket."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from lora_opt.buckets.paths import is_bucket, put_file, put_folder


class Outbox:
  """A local folder whose files are uploaded to a folder in a bucket.

  It is for files that grow, since objects in a bucket cannot: each `put`
  uploads every changed file whole. A target that is a local folder is used
  directly, and `put` does nothing.
  """

  def __init__(self, folder: pathlib.Path, *fetched: str):
    """Creates the local folder.

    Args:
      folder: the target folder of the files.
      *fetched: names of files to download first, because they are continued.
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
    """Uploads the new and changed files.

    Raises:
      OSError: A file cannot be uploaded.
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
    """Uploads what is new or changed and removes the local folder."""
    if self._target is not None:
      self.put()
      self._temporary.cleanup()


@contextlib.contextmanager
def output_folder(
  folder: pathlib.Path, *, new: bool = False
) -> Iterator[pathlib.Path]:
  """Yields the folder itself if it is local, else one to upload at the end.

  Args:
    folder: the final folder of the files.
    new: whether `folder` must not exist yet. This is checked for a bucket only;
      for a local folder the code that writes checks it.

  Raises:
    FileExistsError: `new` is set and the folder exists.
    OSError: a file cannot be uploaded.
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
