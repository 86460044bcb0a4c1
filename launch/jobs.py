"""Trains the runs of a sweep, one after another or several at once."""

import contextlib
import math
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from checks import append
from processes import training_command


class Run(NamedTuple):
  """One training of the sweep."""

  folder: pathlib.Path
  choice: list[str]  # its flags that differ from run to run
  flags: list[str]  # all its flags

  def finished(self) -> bool:
    """Whether its outcome is known; having diverged is an outcome too."""
    ends = ('run.json', 'diverged.json')
    return any((self.folder / name).exists() for name in ends)


class Training:
  """A run in its own process."""

  def __init__(self, run: Run, head: str, cores: Collection[int]):
    """Starts the run.

    Args:
      run: what to run.
      head: start of the lines that are printed about it.
      cores: cores that it may use; empty for all.
    """
    self.run = run
    self._head = head
    self._log = run.folder / 'log.txt'
    self._started = time.monotonic()
    print(f'{head}: {shlex.join(run.choice)}', flush=True)
    with append(self._log) as out, _confined(cores):
      self.process = subprocess.Popen(
        training_command(run.flags),
        env=os.environ | {'MODEL_DIR': str(run.folder)},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
      )

  def ended(self) -> bool:
    """Whether the process has ended."""
    return self.process.poll() is not None

  def report(self, stopped: bool) -> bool:
    """Prints how the run ended.

    Args:
      stopped: whether it was asked to end.

    Returns:
      Whether it ended as it should.
    """
    code = self.process.returncode
    seconds = time.monotonic() - self._started
    if self.run.finished():
      how = 'finished' if code == 0 else 'diverged'
      print(f'{self._head}: {how} in {seconds:.0f} s', flush=True)
      return True
    if stopped:
      print(f'{self._head}: stopped, goes on from its checkpoint', flush=True)
      return True
    print(f'{self._head}: ended with {code}, see {self._log}', flush=True)
    return False


@contextlib.contextmanager
def _confined(cores: Collection[int]) -> Iterator[None]:
  """Limits processes started inside to these cores; empty for all cores."""
  if not cores:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def shares(cores: Collection[int], jobs: int) -> list[list[int]]:
  """Cores for each of several jobs; an empty list if a job may use all.

  >>> shares({0, 1, 2, 3, 4}, 2)
  [[0, 2, 4], [1, 3]]
  >>> shares({0, 1}, 1)
  [[]]
  """
  if jobs == 1 or len(cores) < jobs:
    return [[] for _ in range(jobs)]
  return [sorted(cores)[job::jobs] for job in range(jobs)]


def run_all(
  runs: Sequence[Run], *, jobs: int = 1, hours: float | None = None
) -> tuple[list[Run], bool]:
  """Trains one after another, or several at once, and prints the progress.

  On SIGTERM and Ctrl-C, the current runs save and end.

  Args:
    runs: what to run, in this order.
    jobs: number of runs at a time, each on its share of the cores.
    hours: after this time, the current runs are stopped in the same way.

  Returns:
    The runs that failed (they do not stop the others), and whether a signal
    stopped the sweep.
  """
  deadline = math.inf if hours is None else time.monotonic() + 3600 * hours
  signals: list[int] = []
  handled = (signal.SIGTERM, signal.SIGINT)
  before = [
    signal.signal(n, lambda number, _: signals.append(number)) for n in handled
  ]
  cores = getattr(os, 'sched_getaffinity', lambda _: ())(0)
  free = shares(cores, jobs)[::-1]
  failed, under_way = [], []
  waiting = list(enumerate(runs, start=1))[::-1]
  stopping = False
  while under_way or (waiting and not stopping):
    while waiting and free and not stopping:
      count, run = waiting.pop()
      head = f'[{count}/{len(runs)}] {run.folder}'
      cores = free.pop()
      under_way.append((Training(run, head, cores), cores))
    time.sleep(0.05)
    if not stopping and (signals or time.monotonic() > deadline):
      stopping = True
      for training, _ in under_way:
        training.process.terminate()
    for training, cores in [x for x in under_way if x[0].ended()]:
      under_way.remove((training, cores))
      free.append(cores)
      if not training.report(stopping):
        failed.append(training.run)
  for number, handler in zip(handled, before, strict=True):
    signal.signal(number, handler)
  return failed, bool(signals)
