"""Reports the progress of all long steps in the same way.

A terminal shows one moving line, which disappears when the step is done. A log
file gets an occasional plain line, and none for quick steps. Everything goes to
standard error.
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
# Seconds until a step gets a line on a terminal, and between its updates.
_SHOWN_AFTER, _TICK = 1.0, 0.5
# Seconds until a log file gets its first line, and between the next ones.
_FIRST_LINE, _NEXT_LINES = 10.0, 60.0

_muted = False


def mute() -> None:
  """Turns all reports off: another process of this run reports for all."""
  global _muted
  _muted = True


class Bar:
  """Shows the progress of a step of known length.

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
    """Starts the clock and the display.

    Args:
      what: the name of the step.
      total: the number of units in the step.
      unit: 'B' for bytes, shown as kB, MB, GB; '' for a plain count.
      stream: the output stream; standard error by default.
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
    """Adds `count` finished units."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)

  def to(self, done: int) -> None:
    """Sets the number of finished units to `done`."""
    self.update(done - self._done)

  def close(self) -> None:
    """Removes the moving line; a log file that has lines gets a final one."""
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
  """Yields items and shows how many have been read.

  Args:
    items: if they have no length, all are made into a list first.
    what: the name of the step.

  >>> list(counted(range(3), 'adding'))
  [0, 1, 2]
  """
  # Items with a known length are read one by one, since images are large.
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
  """Shows the elapsed time of a step whose progress is unknown.

  >>> import io
  >>> with waiting('compiling', usual=30.0, stream=io.StringIO()):
  ...   pass

  Args:
    what: the name of the step.
    usual: seconds that it took last time; None if unknown.
    stream: the output stream; standard error by default.
    on_terminal: whether to show it on a terminal; False for a step that does so
      itself.
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
  """Calls `say` with the seconds since the start, after each pause."""

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
  """Formats a duration for humans.

  >>> _time(29.7), _time(3700)
  ('30 s', '1:01:40')
  """
  if seconds < 100:
    return f'{seconds:.0f} s'
  return tqdm.tqdm.format_interval(seconds)


def _print(text: str, stream: TextIO) -> None:
  tqdm.tqdm.write(text, file=stream)
  stream.flush()
