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


def _is_news(record: logging.LogRecord) -> bool:
  place = record.filename, record.funcName
  return not record.exc_info or place not in _RAISING


def _without_late_callbacks(
  kind: type[BaseException],
  error: BaseException,
  traceback: TracebackType | None,
) -> None:
  # TensorStore raises this when it reports to a save that has already failed.
  if str(error) != 'Event loop is closed':
    sys.__excepthook__(kind, error, traceback)
