"""The interface of trackers, and the data they receive."""

import importlib
import importlib.util
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

# How one start of a run ended: everything is done; it was told to stop, and the
# same command resumes it; it failed with an error.
FINISHED, STOPPED, FAILED = 'finished', 'stopped', 'failed'


class Run(NamedTuple):
  """The run in MODEL_DIR, as a tracker sees it.

  Attributes:
    name: the folder's name.
    folder: MODEL_DIR, absolute.
    settings: every gin setting by name, numbers as numbers, and some facts.
    id: the tracker's id of the run from an earlier start; None at first.
    sent: split -> the last step that was sent to the tracker.
  """

  name: str
  folder: pathlib.Path
  settings: Mapping[str, Any]
  id: str | None
  sent: Mapping[str, int]


class Begun(NamedTuple):
  """What a tracker returns when it has started a run.

  Attributes:
    id: the tracker's id of the run, with which it can resume it.
    where: says in words where the user can see the run.
    sent: split -> the last step that the tracker has; `Run.sent` if it cannot
      tell.
  """

  id: str
  where: str
  sent: Mapping[str, int]


class Row(NamedTuple):
  """The numbers of one split at one step.

  Attributes:
    split: 'train', 'eval', or 'before' and 'after' training.
    step: training steps finished.
    time: seconds since 1970; None if it was not recorded.
    scalars: name -> float, NaN if it was not a finite number.
  """

  split: str
  step: int
  time: float | None
  scalars: Mapping[str, float]


class Tracker(Protocol):
  """Receives the numbers of a run; a thread of its own calls the methods.

  An exception becomes one warning. The tracker is called again later, and the
  run goes on.

  Attributes:
    name: the name its users know, without spaces.
    patience: seconds that it gets at the end to take the remaining rows.
    at_once: maximum number of rows in one call. More than one is for trackers
      whose calls take long, and take all rows or none: rows are then collected
      for a second.
  """

  name: str
  patience: float
  at_once: int

  def place(self) -> Mapping[str, str]:
    """Project, server and the like; if they change, the run is a new one."""

  def begin(self, run: Run) -> Begun:
    """Starts a run, or resumes it if it has an id."""

  def log(self, rows: Sequence[Row]) -> None:
    """Receives rows; the steps of each split come in order."""

  def finish(self, status: str) -> None:
    """Ends this start of the run as `FINISHED`, `STOPPED` or `FAILED`."""


def load(package: str, extra: str) -> types.ModuleType:
  """Imports the package of a tracker.

  Args:
    package: the name of its module.
    extra: the extra of lora_opt that installs it.

  Raises:
    ValueError: it is not installed, or cannot be imported.
  """
  # Called in the main thread and at the start: the user asked for the tracker,
  # and concurrent imports in other threads are not safe.
  if importlib.util.find_spec(package) is None:
    raise ValueError(
      f'TRACKERS asks for {package}, which is not installed: '
      f"pip install 'lora_opt[{extra}]'"
    )
  try:
    return importlib.import_module(package)
  except Exception as error:
    raise ValueError(
      f'TRACKERS asks for {package}, which cannot be imported '
      f'({type(error).__name__}: {error}). Mend it with '
      f"pip install 'lora_opt[{extra}]', or leave it out of TRACKERS"
    ) from error
