"""SIGTERM and Ctrl-C stop a run with nothing lost; Ctrl-C twice stops it now.

Whatever a process was doing, a stop ends it with the exit status `EXIT`: the
same command resumes from there. While there are steps to save, a signal is only
a request: the step is finished and saved first. At any other time (loading,
compiling, evaluating) nothing is lost by ending at once.

One request may arrive as several signals: SLURM sends SIGTERM to a script and
to its child processes, and the script passes it on. So only Ctrl-C counts as a
second request, and only if it comes some time after the first.
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

# EX_TEMPFAIL of sysexits.h: not an error, the command should be run again.
EXIT = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Library code, such as a compilation, sees a signal only when it returns. After
# so many seconds the process is ended without waiting for it.
_PATIENCE = 20.0
_MOMENT = 0.5


class Stopped(SystemExit):
  """The process was told to stop, and has nothing left to save.

  Attributes:
    together: whether all processes of the run stop here.
  """

  def __init__(self, together: bool = False):
    super().__init__(EXIT)
    self.together = together


class Stops:
  """Handles the signals while it is open; only the main thread can open it.

  >>> with Stops() as stops, stops.later():
  ...   os.kill(os.getpid(), signal.SIGTERM)
  ...   stops.asked
  'SIGTERM'
  """

  def __init__(self):
    self.asked = ''  # the first signal's name
    self._later = False
    self._lost = False  # `Stopped` was raised where Python ignores exceptions
    self._again: threading.Timer | None = None
    self._ended = threading.Event()

  def __enter__(self) -> Self:
    global _active
    self._before = [signal.signal(n, self._handle) for n in _SIGNALS]
    # A signal writes a byte at once, whatever the main thread is doing.
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
    """Inside, a signal only sets `asked`; after it, signals raise again."""
    self._later = True
    try:
      yield
    finally:
      self._later = False

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Makes signals raise `Stopped` at once again, for a part of `later`."""
    self.heed()
    before, self._later = self._later, False
    try:
      yield
    finally:
      self._later = before

  def heed(self) -> None:
    """Raises `Stopped` if a signal has arrived."""
    if self.asked:
      raise Stopped

  def restore_sigterm(self) -> None:
    """Installs this object's SIGTERM handler again, after JAX replaced it."""
    signal.signal(signal.SIGTERM, self._handle)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self._lost:
      self._lost = False
      if self._later:
        return
      raise Stopped
    if self.asked:
      return  # the watcher decides whether this ends the process
    self.asked = signal.Signals(number).name
    if not self._later:
      _say(f'Stopped by {self.asked}; run again to go on.')
      raise Stopped
    _say(
      f'{self.asked}: this step is finished and saved. Ctrl-C (again) stops '
      'without.'
    )

  def _raised_in_vain(self, what: 'sys.UnraisableHookArgs') -> None:
    """Sends a signal again if `Stopped` was lost in a callback.

    Python ignores exceptions in some callbacks. JAX has such callbacks in every
    garbage collection.
    """
    if not issubclass(what.exc_type, Stopped):
      self._hook(what)
      return
    self._lost = True
    # Not as SIGINT: a second one would end the process at once.
    self._again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    self._again.daemon = True
    self._again.start()

  def _watch(self) -> None:
    """Ends the process after a second Ctrl-C, or if it does not end itself."""
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
  """Yields the `Stops` that is open, or opens one.

  Outside the main thread it yields one that is not open and gets no signals.
  """
  if _active is not None:
    yield _active
  elif threading.current_thread() is not threading.main_thread():
    yield Stops()
  else:
    with Stops() as own:
      yield own


@contextlib.contextmanager
def unheard() -> Iterator[None]:
  """Child processes started inside do not receive the signals; this one does.

  A terminal and SLURM send them to all processes. A worker that ended would
  lose the batch that the last step needs.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(code: int) -> None:
  """From here on, when all is done, a signal ends the process with `code`.

  Python restores the default handlers while it exits, which may take a second.
  A finished run would then look as if a signal had killed it.
  """
  for number in _SIGNALS:
    signal.signal(number, lambda *_: end_now(code))


def ignore() -> None:
  """Makes signals have no effect, for the very last moment of a process."""
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)


def end_now(code: int) -> None:
  """Ends this process, from any thread, and its child processes.

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
  """Writes to standard error; safe if a signal interrupts a print."""
  with contextlib.suppress(OSError):
    os.write(2, f'\n{text}\n'.encode())
