"""The answers of both sides: steps, the time to the first, and memory."""

import pathlib
import re
import time
from collections.abc import Callable

from experiments.worker import serve


def serve_steps(step: Callable[[], dict], started: float) -> None:
  """Answers `step`, `first`, `reset` and `peak` until there are no questions.

  Args:
    step: takes a step and returns its figures.
    started: when the process began, by `time.perf_counter`.
  """

  def first() -> float:
    step()
    return time.perf_counter() - started

  answers = {
    'step': step,
    'first': first,
    'reset': _reset_peak,
    'peak': _peak_bytes,
  }
  serve(lambda question: answers[question]())


def _reset_peak() -> None:
  """Measures the peak from now on; works only on Linux."""
  pathlib.Path('/proc/self/clear_refs').write_bytes(b'5')


def _peak_bytes() -> int:
  """Largest resident memory since `_reset_peak`."""
  status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  return 1024 * int(re.search(r'VmHWM:\s+(\d+)', status)[1])
