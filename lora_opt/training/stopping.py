"""SIGTERM and Ctrl-C: a run stops with nothing lost; Ctrl-C twice stops it now.

Whatever a process was doing, a stop ends it with `EXIT`, which says that the
same command goes on from there. While there are steps to save the signal only
asks: the step is finished and saved first. At any other time (loading,
compiling, evaluating) nothing is lost by ending at once.

One request may arrive as several signals: SLURM sends SIGTERM to a script and
to what it runs, and the script passes it on. So only Ctrl-C counts as a second
one, and not within a moment of the first.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

# EX_TEMPFAIL of sysexits.h: it did not fail, and wants to be run again.
EXIT = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What is in a library, as a compilation, hears of a signal only afterwards;
# after so many seconds it is ended without having heard.
_PATIENCE = 20.0
_MOMENT = 0.5


class Stopped(SystemExit):
  """The process was told to stop, and has nothing left to save.

  Attributes:
    together: all processes of the run stop here.
  """

  def __init__(self, together: bool = False):
    super().__init__(EXIT)
    self.together = together


class Stops:
  """Handles the signals while open; only the main thread can open one.

  >>> with Stops() as stops, stops.later():
  ...   os.kill(os.getpid(), signal.SIGTERM)
  ...   stops.asked
  'SIGTERM'
  """

  def __init__(self):
    self.asked = ''  # the first signal's name
    self._later = False
    self._lost = False  # `Stopped` was raised where nothing is ever raised
    self._again: threading.Timer | None = None
    self._ended = threading.Event()

  def __enter__(self) -> Self:
    global _active
    self._before = [signal.signal(n, self._handle) for n in _SIGNALS]
    # Bytes come in the moment a signal does, whatever the main thread does.
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    self._outer, _active = _active, self
    self._hook, sys.unraisablehook = sys.unraisablehook, self._raised_in_vain
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    global _active
    _active = self._outer
    sys.unraisablehook = self._hook
    if self._again is not None:
      self._again.cancel()
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in zip(_SIGNALS, self._before, strict=True):
      signal.signal(number, handler)
    self._ended.set()
    os.close(self._writer)  # ends the watcher
    self._watcher.join()
    os.close(self._reader)

  @contextlib.contextmanager
  def later(self) -> Iterator[None]:
    """Inside, a signal only asks; see `asked`. Behind, it is heeded."""
    self._later = True
    try:
      yield
    finally:
      self._later = False

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Within `later`: inside, a signal raises `Stopped` as elsewhere."""
    self.heed()
    before, self._later = self._later, False
    try:
      yield
    finally:
      self._later = before

  def heed(self) -> None:
    """Raises `Stopped` if a signal has come."""
    if self.asked:
      raise Stopped

  def restore_sigterm(self) -> None:
    """Takes SIGTERM back from whom it was lent to."""
    signal.signal(signal.SIGTERM, self._handle)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self._lost:
      self._lost = False
      if self._later:
        return
      raise Stopped
    if self.asked:
      return  # whether it ends the process is the watcher's
    self.asked = signal.Signals(number).name
    if not self._later:
      _say(f'Stopped by {self.asked}; run again to go on.')
      raise Stopped
    _say(
      f'{self.asked}: this step is finished and saved. Ctrl-C (again) stops '
      'without.'
    )

  def _raised_in_vain(self, what: 'sys.UnraisableHookArgs') -> None:
    """A signal came within a callback that cannot raise: raises it again.

    JAX has such callbacks in every collection of garbage.
    """
    if not issubclass(what.exc_type, Stopped):
      self._hook(what)
      return
    self._lost = True
    # Not as SIGINT: a second one ends the process without more ado.
    self._again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    self._again.daemon = True
    self._again.start()

  def _watch(self) -> None:
    """Ends the process at a second Ctrl-C, or if it does not end by itself."""
    first = alone = None
    while True:
      waiting = None if first is None else 1.0
      if select.select([self._reader], [], [], waiting)[0]:
        data = os.read(self._reader, 64)
        if not data or self._ended.is_set():
          return
        now = time.monotonic()
        if first is None and not {*data}.isdisjoint(_SIGNALS):
          first = now
        elif signal.SIGINT in data and now > first + _MOMENT:
          _stop_now('Stopped at once')
      if first is None or self._later:
        alone = None
      elif alone is None:
        alone = time.monotonic()
      elif time.monotonic() > alone + _PATIENCE:
        _stop_now('Stopped')


_active: Stops | None = None


@contextlib.contextmanager
def stops() -> Iterator[Stops]:
  """The one that is open, or one of its own; in other threads a deaf one."""
  if _active is not None:
    yield _active
  elif threading.current_thread() is not threading.main_thread():
    yield Stops()
  else:
    with Stops() as own:
      yield own


@contextlib.contextmanager
def unheard() -> Iterator[None]:
  """Processes that are started inside get neither signal; this one gets it.

  A terminal and SLURM send them to all, and a worker that ended would take the
  batch with it that the last step needs.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(code: int) -> None:
  """All is said and done: from here on a signal ends the process with `code`.

  Python takes its handlers back while it ends, which may take a second; a
  finished run would then look like one that a signal killed.
  """
  for number in _SIGNALS:
    signal.signal(number, lambda *_: end_now(code))


def ignore() -> None:
  """Signals have no effect any more: for the very last moment of a process."""
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)


def end_now(code: int) -> None:
  """Ends the process from any thread, and those that it has started.

  Args:
    code: the exit status.
  """
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(code)


def _stop_now(what: str) -> None:
  _say(f'{what}; run again to go on from the newest checkpoint.')
  end_now(EXIT)


def _say(text: str) -> None:
  """To standard error, also where a signal comes in the middle of a print."""
  with contextlib.suppress(OSError):
    os.write(2, f'\n{text}\n'.encode())
