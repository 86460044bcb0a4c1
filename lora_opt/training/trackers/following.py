"""Reports a run to trackers, from threads that training does not wait for.

The rows sent to a tracker are read from MODEL_DIR: metrics.jsonl, and
evaluation/ before and after training. So those files are the queue: whatever a
tracker does, no row is lost and none takes memory. A tracker that could not be
reached, or that is added later, is sent everything it lacks.
MODEL_DIR/trackers.json records what it was sent, and its id of the run.
"""

import ast
import contextlib
import math
import pathlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from lora_opt.evaluation import history
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import integer, one_line, printable, table, text
from lora_opt.run_folder import run_directory, run_files
from lora_opt.training import stopping
from lora_opt.training.trackers.tracker import (
  FAILED,
  FINISHED,
  STOPPED,
  Row,
  Run,
  Tracker,
)

FILE = 'trackers.json'
# Seconds until a tracker that failed is tried again.
_RETRY = 60.0
# Maximum seconds that a tracker gets at the end; whoever stops a run may not
# wait for long.
_PATIENCE = {FINISHED: float('inf'), FAILED: 20.0, STOPPED: 10.0}
_SAID_AFTER = 2.0
# Minimum seconds between two writes of the record while a tracker lags behind;
# seconds for which rows are collected for one that takes many at once.
_NOTE, _GATHER = 1.0, 1.0

_ending: list[threading.Thread] = []


def abandoned() -> Sequence[str]:
  """Names of tracker threads that were told to end but have not.

  The exit handlers that such a tracker has registered may hang as well.
  """
  return tuple(thread.name for thread in _ending if thread.is_alive())


class Followers:
  """All trackers of a run, with their threads."""

  def __init__(self, followers: Sequence['_Follower']):
    """See `following`."""
    self._followers = followers
    self._ended = False

  def wake(self) -> None:
    """Tells the trackers that this start has written something new."""
    for follower in self._followers:
      follower.wake()

  def finish(self, status: str = FINISHED) -> None:
    """Ends all trackers, waiting a limited time; a second call does nothing."""
    if self._ended:
      return
    self._ended = True
    for follower in self._followers:
      follower.finish(status)
    for follower in self._followers:
      follower.wait()


@contextlib.contextmanager
def following(
  folder: pathlib.Path,
  trackers: Iterable[Tracker],
  settings: Mapping[str, Any],
) -> Iterator[Followers]:
  """Reports what happens inside to trackers; only one process should have any.

  Args:
    folder: MODEL_DIR.
    trackers: have different names; each starts at once, in its own thread.
    settings: settings of the run for the trackers to show; texts of gin
      settings that are numbers are converted to numbers.

  Raises:
    ValueError: two trackers have the same name.
  """
  trackers = list(trackers)
  names = [tracker.name for tracker in trackers]
  if twice := {name for name in names if names.count(name) > 1}:
    raise ValueError(f'TRACKERS has {min(twice)} more than once')
  record = _Record(folder.absolute() / FILE)
  shown = {name: _value(value) for name, value in settings.items()}
  followers = Followers(
    [_Follower(each, folder.absolute(), shown, record) for each in trackers]
  )
  status = FAILED
  try:
    yield followers
    status = FINISHED
  except stopping.Stopped:
    status = STOPPED
    raise
  finally:
    followers.finish(status)


class _Follower:
  """One tracker and its thread."""

  def __init__(
    self,
    tracker: Tracker,
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    record: '_Record',
  ):
    self._tracker = tracker
    self._folder = folder
    self._settings = settings
    self._record = record
    self._sent: dict[str, int] = {}
    self._noted, self._noted_at = dict(self._sent), 0.0
    self._offset = 0  # bytes of metrics.jsonl that have been processed
    self._begun = self._ready = self._warned = self._done = False
    self._status = ''
    self._latest = 0.0
    self._news, self._end = threading.Event(), threading.Event()
    self._news.set()
    self._thread = threading.Thread(
      target=self._follow, name=f'tracker {tracker.name}', daemon=True
    )
    self._thread.start()

  def wake(self) -> None:
    self._ready = True
    self._news.set()

  def finish(self, status: str) -> None:
    patience = min(self._tracker.patience, _PATIENCE[status])
    self._latest = time.monotonic() + patience
    self._status = status
    _ending.append(self._thread)
    self._end.set()
    self._news.set()

  def wait(self) -> None:
    """Waits for the thread, with a limit, and says so if that takes long."""
    name = self._tracker.name
    self._thread.join(min(_SAID_AFTER, self._left()))
    if self._thread.is_alive() and self._left():
      _say(f'{name}: waiting for it, for {self._left():.0f} s at most')
      self._thread.join(self._left())
    if self._thread.is_alive():
      self._warn('it does not answer')
    elif self._done and self._warned:
      _say(f'{name}: it has all now')

  def _left(self) -> float:
    return max(self._latest - time.monotonic(), 0.0)

  def _follow(self) -> None:
    while not self._done:
      self._news.wait()
      self._news.clear()
      status = self._status  # rows written before it was set are still sent
      try:
        if not self._begun:
          self._begin()
        if self._ready or status:
          self._send()
        if status:
          self._tracker.finish(status)
          self._done = True
        elif self._tracker.at_once > 1:
          self._end.wait(_GATHER)
      except BaseException as error:
        self._warn(f'{type(error).__name__}: {error}')
        if status:
          return
        self._end.wait(_RETRY)
        self._news.set()

  def _begin(self) -> None:
    name, place = self._tracker.name, dict(self._tracker.place())
    known, sent = self._record.read(name, place)
    run = Run(self._folder.name, self._folder, self._settings, known, sent)
    begun = self._tracker.begin(run)
    self._sent, self._noted = dict(begun.sent), dict(begun.sent)
    self._record.write(name, place, begun.id, self._sent)
    self._begun = True
    _say(f'{name}: {begun.where}')

  def _send(self) -> None:
    """Sends the rows that are new in the files."""
    waiting: list[Row] = []
    try:
      for row in self._new():
        waiting.append(row)
        if len(waiting) >= self._tracker.at_once:
          self._tell(waiting)
          waiting = []
      self._tell(waiting)
    except BaseException:
      self._offset = 0  # read again: some rows may not have been sent
      raise
    finally:
      self._note()

  def _tell(self, rows: Sequence[Row]) -> None:
    if not rows:
      return
    self._tracker.log(rows)
    self._sent.update({row.split: row.step for row in rows})
    if time.monotonic() - self._noted_at > _NOTE:
      self._note()

  def _note(self) -> None:
    if self._sent != self._noted:
      self._record.note(self._tracker.name, self._sent)
      self._noted = dict(self._sent)
    self._noted_at = time.monotonic()

  def _new(self) -> Iterator[Row]:
    """Yields the rows that were not sent yet."""
    yield from self._evaluation('before')
    yield from self._metrics()
    yield from self._evaluation('after')

  def _metrics(self) -> Iterator[Row]:
    sent = dict(self._sent)
    path = self._folder / history.METRICS_FILE
    for line in history.read_lines(path, self._offset):
      if not line.data.endswith(b'\n'):
        return  # still being written
      self._offset += len(line.data)
      if line.row is None:
        continue
      scalars = dict(line.row)
      split, step = scalars.pop('split'), scalars.pop('step')
      if step > sent.get(split, -1):
        sent[split] = step
        yield _row(split, step, scalars.pop('time', None), scalars)

  def _evaluation(self, moment: str) -> Iterator[Row]:
    path = self._folder / 'evaluation' / f'{moment}.json'
    if moment in self._sent or not path.exists():
      return
    try:
      result = run_files.read_evaluation(path)
    except ValueError:
      return  # damaged: the run evaluates again
    metrics = result.get('metrics', {})
    scores = {name: metric['score'] for name, metric in metrics.items()}
    scalars = {'loss': result.get('loss'), **scores}
    yield _row(moment, result.get('step', 0), path.stat().st_mtime, scalars)

  def _warn(self, why: str) -> None:
    if self._warned:
      return
    self._warned = True
    why = one_line(' '.join(why.split()))
    _say(
      f'warning: {self._tracker.name}: {why}. The run does without '
      'it; metrics.jsonl has all, and what this tracker lacks is sent as soon '
      'as it answers, or when the same command is run again.'
    )


class _Record:
  """The file MODEL_DIR/trackers.json, which several threads write."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._lock = threading.Lock()

  def read(
    self, name: str, place: Mapping[str, str]
  ) -> tuple[str | None, dict[str, int]]:
    """The id of the run and the last steps sent; nothing if `place` differs."""
    with self._lock:
      entry = self._all().get(name)
    if entry is None or entry.get('place') != dict(place):
      return None, {}
    what = f'{self._path}: {name}'
    sent = table(entry.get('sent'), f'{what}: sent')
    for split, step in sent.items():
      integer(step, f'{what}: sent: {split}')
    return text(entry.get('id'), f'{what}: id'), dict(sent)

  def write(
    self,
    name: str,
    place: Mapping[str, str],
    known: str,
    sent: Mapping[str, int],
  ) -> None:
    entry = {'id': known, 'place': dict(place), 'sent': dict(sent)}
    with self._lock:
      run_directory.write_json(self._path, {**self._all(), name: entry})

  def note(self, name: str, sent: Mapping[str, int]) -> None:
    with self._lock:
      entries = self._all()
      entries[name] = {**entries[name], 'sent': dict(sent)}
      run_directory.write_json(self._path, entries)

  def _all(self) -> dict[str, Any]:
    if not self._path.exists():
      return {}
    found = table(read_json(self._path), str(self._path))
    for name, entry in found.items():
      table(entry, f'{self._path}: {name}')
    return found


def _row(
  split: str,
  step: int,
  moment: float | None,
  scalars: Mapping[str, float | None],
) -> Row:
  known = {n: math.nan if x is None else x for n, x in scalars.items()}
  return Row(split, step, moment, known)


def _value(setting: Any) -> Any:
  """The number, bool or string that the text of a gin setting stands for."""
  if not isinstance(setting, str):
    return setting
  try:
    value = ast.literal_eval(setting)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return setting
  return value if isinstance(value, bool | int | float | str) else setting


def _say(words: str) -> None:
  """Prints a line without breaking a progress bar."""
  tqdm.tqdm.write(printable(words))
