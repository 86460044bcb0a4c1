"""SIGTERM, as schedulers send it before they take a machine away."""

import signal
from types import TracebackType
from typing import Self


class StopOnSigterm:
  """While open, SIGTERM only sets `requested`; the loop ends at its step.

  >>> import os
  >>> with StopOnSigterm() as stop:
  ...   os.kill(os.getpid(), signal.SIGTERM)
  ...   stop.requested
  True
  """

  def __init__(self):
    self.requested = False

  def __enter__(self) -> Self:
    self._previous = signal.signal(signal.SIGTERM, self._request)
    return self

  def _request(self, number: int, frame: object) -> None:
    del number, frame
    self.requested = True

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    signal.signal(signal.SIGTERM, self._previous)
