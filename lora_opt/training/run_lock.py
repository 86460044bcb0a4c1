"""A lock: one run at a time trains in a MODEL_DIR, across all machines.

The owners of a folder have files MODEL_DIR/lock/0001.json, 0002.json and so on.
Whoever creates the file of the next number first is the owner. Creating a file
that must not exist is exclusive even on shared disks, where file locks are not.
Every few seconds an owner updates the modification time of its file to show
that it is alive. The file of the last owner stays, marked as released, so that
numbers only grow.

The owner of the highest number is gone, and the next may take over, if

- it has released the folder;
- it was a process on this machine (same boot, same PID namespace), and no
  longer exists;
- it was an earlier start of this SLURM job: SLURM ends one start before the
  next;
- its file is older than `SILENCE` by the clock of the disk.

If none of these is known, as after the crash of another machine, a new process
waits until one is, or until the owner shows that it is alive. An owner that was
taken over while it was suspended notices, and stops before it saves again.

In a bucket the files are objects. The store creates an object only if its name
is unused (if-generation-match: 0 in Google Cloud Storage, if-none-match: * in
S3), which is equally exclusive. An owner shows that it is alive by writing its
object again.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from lora_opt import writing
from lora_opt.buckets.paths import create, is_bucket, stamp
from lora_opt.devices.together import is_first, meet, on_first
from lora_opt.reading.json_text import parse_json
from lora_opt.reading.values import shown

FOLDER = 'lock'
BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which an owner counts as gone


class RunLock:
  """Locks a MODEL_DIR while it is open.

  >>> import tempfile
  >>> folder = pathlib.Path(tempfile.mkdtemp())
  >>> with RunLock(folder) as lock:
  ...   lock.check()
  ...   sorted(path.name for path in folder.glob('lock/*'))
  ['0001.json']
  """

  def __init__(
    self,
    model_dir: pathlib.Path,
    *,
    beat: float = BEAT,
    silence: float = SILENCE,
  ):
    """Does not take the lock yet.

    Args:
      model_dir: the run's folder. It must exist.
      beat: seconds between two signs of life.
      silence: seconds without one after which an owner counts as gone.
    """
    self._model_dir = model_dir
    self._folder = model_dir / FOLDER
    self._beat, self._silence = beat, silence
    self._path: pathlib.Path | None = None
    self._trouble = ''
    self._ended = threading.Event()

  def acquire(self) -> None:
    """Takes the lock.

    Raises:
      OSError: Another run has it, or the folder cannot be written.
    """
    if not is_bucket(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
    while self._path is None:
      newest = _newest(self._folder)
      if newest:
        self._wait_for_end(newest)
      self._path = self._create(_number(newest) + 1 if newest else 1)
    threading.Thread(target=self._live, daemon=True).start()

  def check(self) -> None:
    """Raises OSError if this run has lost the lock, or the folder is gone."""
    if self._trouble:
      raise OSError(self._trouble)

  def release(self) -> None:
    """Releases the lock; a second call does nothing."""
    self._ended.set()
    path, self._path = self._path, None
    if path is None:
      return
    with contextlib.suppress(Exception):  # the folder may be gone
      if path.exists():
        writing.write_text(path, '{"released": true}\n')

  def __enter__(self) -> Self:
    self.acquire()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.release()

  def _create(self, number: int) -> pathlib.Path | None:
    """Creates the owner file of a number; None unless new and the highest."""
    path = self._folder / f'{number:04}.json'
    text = json.dumps(_this_process()) + '\n'
    try:
      _write_new(path, text)
    except FileExistsError:
      return None
    if _newest(self._folder) != path:  # our listing of the folder was outdated
      path.unlink(missing_ok=True)
      return None
    for other in _owners(self._folder)[:-1]:
      other.unlink(missing_ok=True)
    return path

  def _wait_for_end(self, path: pathlib.Path) -> None:
    """Returns once the owner that wrote `path` is known to be gone.

    Raises:
      OSError: The owner is alive.
    """
    first = None
    while True:
      owner = _read(path)
      if owner is None or owner.get('released') is True or _is_gone(owner):
        return
      try:
        sign = _last_sign(path)
      except FileNotFoundError:
        return
      age = _disk_time(self._folder) - sign
      if age > self._silence:
        print(
          f'MODEL_DIR={self._model_dir} was held by {_name(owner)}; it has '
          f'given no sign of life for {age:.0f} s, and is taken over.',
          flush=True,
        )
        return
      if first is None:
        first = sign
        if not _may_be_gone(owner):
          raise OSError(self._held(owner, age))
        print(
          f'MODEL_DIR={self._model_dir} is held by {_name(owner)}. Waiting up '
          f'to {self._silence:.0f} s to see whether it is alive.',
          flush=True,
        )
      elif sign != first:
        raise OSError(self._held(owner, age))
      time.sleep(min(1.0, self._beat / 4))

  def _held(self, owner: dict[str, Any], age: float) -> str:
    host, pid = owner.get('host'), owner.get('pid')
    return (
      f'MODEL_DIR={self._model_dir} is in use: {_name(owner)} trains in it, '
      f'last seen {max(age, 0):.0f} s ago. Two runs in one folder would delete '
      "each other's checkpoints. Wait for its end, stop it (kill "
      f'{shown(pid, 20)} on {shown(host, 60)} lets it save), or choose another '
      f'MODEL_DIR. If it is certainly gone, delete {self._folder}'
    )

  def _live(self) -> None:
    """Gives signs of life, and checks whether another run has taken over."""
    while not self._ended.wait(self._beat):
      path = self._path
      if path is None:
        return
      try:
        there = _give_sign(path)
        newest = _newest(self._folder)
        if not there or newest not in (path, None):
          self._trouble = self._lost()
          return
      except Exception:
        continue  # the disk or store may not respond for a while

  def _lost(self) -> str:
    newest = _newest(self._folder)
    if newest is None:  # even if a save in progress has created files since
      return (
        f'MODEL_DIR={self._model_dir} was removed, or its disk is gone, while '
        'the run was in it: nothing more can be saved. What is needed to go on '
        'must be brought back there'
      )
    by = _name(_read(newest) or {})
    return (
      f'MODEL_DIR={self._model_dir} was taken over by {by} while this process '
      'gave no sign of life; it stops, so that the two do not disturb each '
      'other'
    )


@contextlib.contextmanager
def hold(model_dir: pathlib.Path) -> Iterator[RunLock]:
  """Locks a MODEL_DIR for all processes of a run; the first holds the lock.

  Raises:
    OSError: Another run has the lock; raised in all processes.
  """
  lock, failure = RunLock(model_dir), None
  if is_first():
    try:
      lock.acquire()
    except OSError as error:
      failure = error
  # `acquire` may take long, so the others must not wait in a collective.
  meet()
  on_first(lambda: _raise(failure))
  try:
    yield lock
  finally:
    lock.release()


def _raise(error: OSError | None) -> None:
  if error:
    raise error


def _write_new(path: pathlib.Path, text: str) -> None:
  """Creates a file that must not exist; of two processes only one succeeds."""
  if is_bucket(path):
    create(path, text.encode())
    return
  file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
  with os.fdopen(file, 'w', encoding='utf-8') as stream:
    stream.write(text)


def _give_sign(path: pathlib.Path) -> bool:
  """Sets the time of a file to now; returns whether it still exists."""
  try:
    if is_bucket(path):
      # Read first, so that an owner that was taken over does not recreate it.
      path.write_bytes(path.read_bytes())
    else:
      os.utime(path)
  except FileNotFoundError:
    return False
  return True


def _last_sign(path: pathlib.Path) -> float:
  """The modification time of a file by the clock of the disk, in seconds."""
  return stamp(path) if is_bucket(path) else path.stat().st_mtime_ns / 1e9


def _owners(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob('[0-9]*[0-9].json'), key=_number)


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
  owners = _owners(folder)
  return owners[-1] if owners else None


def _number(path: pathlib.Path) -> int:
  return int(path.stem) if path.stem.isdecimal() and len(path.stem) < 12 else 0


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """The content of an owner's file; {} if unreadable, None if it is gone."""
  try:
    with path.open('rb') as file:
      owner = parse_json(file.read(10_000), str(path))
  except FileNotFoundError:
    return None
  except (OSError, ValueError):  # half written, or damaged
    return {}
  return owner if isinstance(owner, dict) else {}


def _disk_time(folder: pathlib.Path) -> float:
  """The current time, by the clock that stamps the files of this folder."""
  probe = folder / f'.{secrets.token_hex(8)}.part'
  with probe.open('wb' if is_bucket(probe) else 'xb') as file:
    file.write(b'x')
  now = _last_sign(probe)
  probe.unlink(missing_ok=True)
  return now


def _this_process() -> dict[str, Any]:
  """What identifies this process, JSON-serialisable."""
  now = datetime.datetime.now(datetime.UTC)
  return {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'started': _start_of(os.getpid()),
    'system': _system(),
    'job': os.environ.get('SLURM_JOB_ID'),
    'cluster': os.environ.get('SLURM_CLUSTER_NAME'),
    'restarts': _restarts(),
    'since': now.isoformat(timespec='seconds'),
  }


def _restarts() -> int:
  count = os.environ.get('SLURM_RESTART_COUNT') or '0'
  if not count.isdecimal():
    raise ValueError(
      f'SLURM_RESTART_COUNT={shown(count)} is not a whole number; SLURM sets '
      'it, nobody else should'
    )
  return int(count)


def _system() -> str | None:
  """The current boot and PID namespace; None if the system does not tell them.

  A container has other process ids than its host.
  """
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text('ascii')
    return f'{boot.strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return None


def _start_of(pid: int) -> str | None:
  """When a process started, in clock ticks since boot; None if it has ended."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text('utf-8', 'replace')
  except OSError:
    return None
  # The program's name, in parentheses, may itself contain parentheses.
  state, *rest = text.rpartition(')')[2].split()
  return None if state in 'ZX' else rest[18]  # Z, X: ended, but not yet reaped


def _is_gone(owner: dict[str, Any]) -> bool:
  """Whether an owner is known to have ended."""
  here = _this_process()
  job, pid = owner.get('job'), owner.get('pid')
  if job and (job, owner.get('cluster')) == (here['job'], here['cluster']):
    restarts = owner.get('restarts')
    if isinstance(restarts, int) and restarts < here['restarts']:
      return True
  if not here['system'] or owner.get('system') != here['system']:
    return False
  return isinstance(pid, int) and _start_of(pid) != owner.get('started')


def _may_be_gone(owner: dict[str, Any]) -> bool:
  """Whether only waiting can show that an owner is gone."""
  here = _this_process()['system']
  return not here or owner.get('system') != here


def _name(owner: dict[str, Any]) -> str:
  """Describes an owner in words."""
  if 'pid' not in owner:
    return 'a process that cannot be read from its file'
  job = f' (SLURM job {shown(owner["job"], 20)})' if owner.get('job') else ''
  return (
    f'process {shown(owner["pid"], 20)} on {shown(owner.get("host"), 60)}{job},'
    f' since {shown(owner.get("since"), 40)}'
  )
