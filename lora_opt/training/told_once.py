"""Libraries log what they also raise; here only who catches it tells it.

A disk that is full in the middle of a save makes Orbax, asyncio and TensorStore
print some hundred lines, thread by thread, before the run ends with its reason.
"""

import logging
import sys
from types import TracebackType

# Of Orbax, file and function: what they log with a traceback is raised too.
_RAISING = {
  ('async_checkpointer.py', '_thread_func'),
  ('checkpoint.py', '_update_and_log'),
  ('checkpoint.py', '_write_and_log'),
  ('checkpoint_manager.py', 'wait_until_finished'),
  ('future.py', 'run'),
}


def tell_once() -> None:
  """From here on tracebacks of errors that are raised too are not logged."""
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
  # What TensorStore reports to a save that has failed meanwhile.
  if str(error) != 'Event loop is closed':
    sys.__excepthook__(kind, error, traceback)
