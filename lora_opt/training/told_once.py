"""Keeps libraries from logging errors that they also raise.

If the disk becomes full during a save, Orbax, asyncio and TensorStore print
about a hundred lines, thread by thread, before the run ends with the reason.
"""

import logging
import sys
from types import TracebackType

# Files and functions of Orbax that raise every error they log with a traceback.
_RAISING = {
  ('async_checkpointer.py', '_thread_func'),
  ('checkpoint.py', '_update_and_log'),
  ('checkpoint.py', '_write_and_log'),
  ('checkpoint_manager.py', 'wait_until_finished'),
  ('future.py', 'run'),
}


def tell_once() -> None:
  """Turns off the logging of tracebacks for errors that are also raised."""
  logging.getLogger('absl').addFilter(_is_news)
  sys.excepthook = _without_late_callbacks
  sys.unraisablehook = _without_late_unraisable


def _is_news(record: logging.LogRecord) -> bool:
  place = record.filename, record.funcName
  return not record.exc_info or place not in _RAISING


def _without_late_callbacks(
  kind: type[BaseException],
  error: BaseException,
  traceback: TracebackType | None,
) -> None:
  if not _is_late_callback(error):
    sys.__excepthook__(kind, error, traceback)


def _without_late_unraisable(unraisable) -> None:
  if not _is_late_callback(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)


def _is_late_callback(error: BaseException | None) -> bool:
  # TensorStore meets this when it reports to a save that has already failed. It
  # has no caller to raise it to; which hook gets it depends on the place.
  return str(error) == 'Event loop is closed'
