"""Checkpoints in S3 buckets, which Orbax cannot write to.

Orbax 0.12 hands every path but gs:// to the local file driver of tensorstore.
So it writes to a local disk here, and each finished checkpoint is uploaded to
the bucket, its mark last. A checkpoint without the mark is one whose upload was
cut off, and is ignored.
"""

import concurrent.futures
import os
import pathlib
import re
import tempfile
from collections.abc import Callable

from lora_opt.buckets.paths import filesystem, put_file, remove
from lora_opt.run_folder.checkpoint_files import MARK


class CheckpointStore:
  """The folder MODEL_DIR/checkpoints in a bucket, and its local copy."""

  def __init__(self, folder: pathlib.Path, name: re.Pattern):
    """Downloads the finished checkpoints.

    Args:
      folder: the folder in the bucket.
      name: matches the name of a checkpoint.
    """
    self._target, self._name = folder, name
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._putting: concurrent.futures.Future[None] | None = None
    self._home = tempfile.TemporaryDirectory(prefix='lora_opt_')
    self.folder = pathlib.Path(self._home.name) / folder.name
    self.folder.mkdir()
    store = filesystem(folder)
    for step in self._finished():
      store.get(f'{folder}/{step}/', f'{self.folder / step}/', recursive=True)

  def put_after(self, written: Callable[[], None]) -> None:
    """Calls `put` in the background, once `written` has returned."""

    def run():
      written()
      self.put()

    self._putting = self._thread.submit(run)

  def wait(self) -> None:
    """Waits for the upload that `put_after` started.

    Raises:
      OSError: The bucket cannot be written.
    """
    putting, self._putting = self._putting, None
    if putting is not None:
      putting.result()

  def put(self) -> None:
    """Uploads new checkpoints, and removes those that are gone on local disk.

    Raises:
      OSError: The bucket cannot be written.
    """
    names = (path.name for path in self.folder.iterdir())
    local = set(filter(self._name.fullmatch, names))
    finished = self._finished()
    for step in sorted(local - finished):
      self._put_step(step)
    for step in sorted(self._all() - local):
      self._remove_step(step)

  def close(self) -> None:
    """Removes the local copy."""
    self._home.cleanup()

  def _put_step(self, step: str) -> None:
    target = self._target / step
    remove(target)  # what is left of an upload that was cut off
    source = self.folder / step
    files = [path for path in source.rglob('*') if path.is_file()]
    for file in sorted(files, key=lambda file: (file == source / MARK, file)):
      put_file(file, target / file.relative_to(source).as_posix())

  def _remove_step(self, step: str) -> None:
    # The mark first, so that a half removed checkpoint counts as none.
    if (self._target / step / MARK).exists():
      (self._target / step / MARK).unlink()
    remove(self._target / step)

  def _all(self) -> set[str]:
    store = filesystem(self._target)
    found = store.find(os.fspath(self._target), withdirs=False)
    prefix = os.fspath(self._target).partition('://')[2]
    names = {path[len(prefix) :].strip('/').split('/')[0] for path in found}
    return set(filter(self._name.fullmatch, names))

  def _finished(self) -> set[str]:
    return {
      step for step in self._all() if (self._target / step / MARK).exists()
    }
