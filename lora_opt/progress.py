"""How far a long step is, said alike by whatever takes long.

A terminal sees one moving line, which goes when the step is done. A log file
gets plain lines, seldom, and none of what is quick. All goes to standard error.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO, TypeVar

import tqdm

from lora_opt.reading.values import one_line

T = TypeVar('T')
# Seconds until a step is worth a line of a terminal, and how often that moves.
_SHOWN_AFTER, _TICK = 1.0, 0.5
# Seconds until a log file gets its first line, and its next ones.
_FIRST_LINE, _NEXT_LINES = 10.0, 60.0

_muted = False


def mute() -> None:
  """Nothing more is said: another process of this run speaks for all."""
  global _muted
  _muted = True


class Bar:
  """A step of known length.

  >>> import io
  >>> with Bar('reading', 10, stream=io.StringIO()) as bar:
  ...   bar.update(4)
  ...   bar.to(10)
  """

  def __init__(
    self,
    what: str,
    total: int,
    *,
    unit: str = '',
    stream: TextIO | None = None,
  ):
    """Begins.

    Args:
      what: is done.
      total: how many there are.
      unit: 'B' for bytes, which are shown as kB, MB, GB; '' for things.
      stream: where to; standard error by default.
    """
    self._what, self._total, self._unit = one_line(what), total, unit
    self._stream = sys.stderr if stream is None else stream
    self._done, self._said = 0, False
    self._start = time.monotonic()
    self._bar = self._ticker = None
    if _muted:
      return
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        desc=self._what,
        file=self._stream,
        leave=False,
        delay=_SHOWN_AFTER / 2,
        unit=unit or 'it',
        unit_scale=bool(unit),
        dynamic_ncols=True,
      )
    else:
      self._ticker = _Ticker(_lines(), self._say)

  def update(self, count: int = 1) -> None:
    """So many more are done."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)

  def to(self, done: int) -> None:
    """So many are done altogether."""
    self.update(done - self._done)

  def close(self) -> None:
    """Takes the moving line away; a log that was told of it is told the end."""
    if self._bar is not None:
      self._bar.close()
    if self._ticker is not None:
      self._ticker.stop()
      if self._said:
        self._say(self._seconds())

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _say(self, seconds: float) -> None:
    self._said = True
    done, total = map(self._number, (self._done, self._total))
    text = f'{self._what}: {done}/{total}, {_time(seconds)} so far'
    if 0 < self._done < self._total:
      left = seconds / self._done * (self._total - self._done)
      text += f', {_time(left)} left'
    _print(text, self._stream)

  def _seconds(self) -> float:
    return time.monotonic() - self._start

  def _number(self, count: int) -> str:
    if not self._unit:
      return str(count)
    return tqdm.tqdm.format_sizeof(count, self._unit)


def counted(items: Iterable[T], what: str) -> Iterator[T]:
  """Items, counted while they are read.

  Args:
    items: those that do not know how many they are, are made first.
    what: is done with them.

  >>> list(counted(range(3), 'adding'))
  [0, 1, 2]
  """
  # What knows how many they are is read one by one: images are large.
  items = items if hasattr(items, '__len__') else list(items)
  with Bar(what, len(items)) as bar:
    for item in items:
      yield item
      bar.update()


@contextlib.contextmanager
def waiting(
  what: str,
  usual: float | None = None,
  *,
  stream: TextIO | None = None,
  on_terminal: bool = True,
) -> Iterator[None]:
  """A step that does not say how far it is: its time passes, at least.

  >>> import io
  >>> with waiting('compiling', usual=30.0, stream=io.StringIO()):
  ...   pass

  Args:
    what: is done inside.
    usual: seconds that it took last time; None where nobody knows.
    stream: where to; standard error by default.
    on_terminal: whether to say it on a terminal; the step may do so itself.
  """
  stream = sys.stderr if stream is None else stream
  terminal = stream.isatty()
  if _muted or (terminal and not on_terminal):
    yield
    return
  what = one_line(what)
  before = '' if usual is None else f' ({_time(usual)} last time)'
  start = time.monotonic()
  bar = None
  said = False

  def say(seconds: float) -> None:
    nonlocal bar, said
    text, said = f'{what}: {_time(seconds)}{before}', True
    if not terminal:
      _print(text, stream)
      return
    if bar is None:
      bar = tqdm.tqdm(file=stream, leave=False, bar_format='{desc}')
    bar.set_description_str(text)

  ticker = _Ticker(_ticks() if terminal else _lines(), say)
  try:
    yield
    done = True
  except BaseException:
    done = False
    raise
  finally:
    ticker.stop()
    if bar is not None:
      bar.close()
  if done and said and not terminal:
    _print(f'{what}: done in {_time(time.monotonic() - start)}', stream)


class _Ticker:
  """Calls `say` with the seconds since the start, after each of the pauses."""

  def __init__(self, pauses, say):
    self._done = threading.Event()
    self._thread = threading.Thread(
      target=self._run, args=(pauses, say), daemon=True
    )
    self._thread.start()

  def stop(self) -> None:
    self._done.set()
    self._thread.join()

  def _run(self, pauses, say) -> None:
    start = time.monotonic()
    for pause in pauses:
      if self._done.wait(pause):
        return
      # The stream may be closed by now.
      with contextlib.suppress(OSError, ValueError):
        say(time.monotonic() - start)


def _ticks() -> Iterator[float]:
  yield _SHOWN_AFTER
  while True:
    yield _TICK


def _lines() -> Iterator[float]:
  yield _FIRST_LINE
  while True:
    yield _NEXT_LINES


def _time(seconds: float) -> str:
  """A span of time for people.

  >>> _time(29.7), _time(3700)
  ('30 s', '1:01:40')
  """
  if seconds < 100:
    return f'{seconds:.0f} s'
  return tqdm.tqdm.format_interval(seconds)


def _print(text: str, stream: TextIO) -> None:
  tqdm.tqdm.write(text, file=stream)
  stream.flush()
