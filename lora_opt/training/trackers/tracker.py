"""What a tracker must offer, and what it receives."""

import importlib
import importlib.util
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

# How a start of a run ended: all is done; it was told to stop, and the same
# command goes on; an error.
FINISHED, STOPPED, FAILED = 'finished', 'stopped', 'failed'


class Run(NamedTuple):
  """A run of MODEL_DIR, as a tracker sees it.

  Attributes:
    name: the folder's name.
    folder: MODEL_DIR, absolute.
    settings: every gin setting by name, numbers as numbers, and some facts.
    id: under which the tracker knows it from an earlier start; None at first.
    sent: split -> the last step of it that the tracker was sent.
  """

  name: str
  folder: pathlib.Path
  settings: Mapping[str, Any]
  id: str | None
  sent: Mapping[str, int]


class Begun(NamedTuple):
  """What a tracker answers.

  Attributes:
    id: under which it will know the run again.
    where: the run is to be seen, in words for the user.
    sent: split -> the last step of it that the tracker has; `Run.sent` where it
      cannot tell.
  """

  id: str
  where: str
  sent: Mapping[str, int]


class Row(NamedTuple):
  """Numbers of one moment.

  Attributes:
    split: 'train', 'eval', or 'before' and 'after' training.
    step: training steps finished.
    time: seconds since 1970; None where nobody noted it.
    scalars: name -> float, NaN where it was not a finite number.
  """

  split: str
  step: int
  time: float | None
  scalars: Mapping[str, float]


class Tracker(Protocol):
  """Takes the numbers of a run. One thread of its own calls all but `place`.

  Whatever it raises becomes one warning; it is called again later, and the run
  goes on.

  Attributes:
    name: as its users know it, without spaces.
    patience: seconds that it is given at the end to take what is left.
    at_once: how many rows it is given at most in one call. More than one where
      a call takes long and takes all of them or none: they gather for a second.
  """

  name: str
  patience: float
  at_once: int

  def place(self) -> Mapping[str, str]:
    """Project, server and the like: where they change, the run is a new one."""

  def begin(self, run: Run) -> Begun:
    """Starts a run, or takes it up again if it has an id."""

  def log(self, rows: Sequence[Row]) -> None:
    """Takes rows; the steps of each split come in order."""

  def finish(self, status: str) -> None:
    """Ends this start of the run as `FINISHED`, `STOPPED` or `FAILED`."""


def load(package: str, extra: str) -> types.ModuleType:
  """Imports the package of a tracker.

  Args:
    package: its module.
    extra: of lora_opt that brings it.

  Raises:
    ValueError: it is not installed, or cannot be imported.
  """
  # In the main thread and at the start: the user asked for it, and an import
  # beside others that happen meanwhile is no safe thing.
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
