"""A process that makes a measurement on request, and waits in between.

Programs that are compared run in separate processes, so that neither has the
other's threads or memory. They take turns, so that the machine is in the same
state for both.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

_MARK = 'answer '


class Worker:
  """The side that asks.

  Args:
    command: command of a process that calls `serve`.
    environment: its environment variables; None for those of this process.
  """

  def __init__(self, command: Sequence[str], environment=None):
    self._process = subprocess.Popen(
      [*map(str, command)],
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      encoding='utf-8',
      bufsize=1,
    )

  def ask(self, question: str) -> Any:
    """Sends a line to the process, and returns its answer.

    Raises:
      RuntimeError: the process ended instead.
    """
    self._process.stdin.write(question + '\n')
    while line := self._process.stdout.readline():
      # Other code in the process prints, too.
      if line.startswith(_MARK):
        return json.loads(line.removeprefix(_MARK))
    raise RuntimeError(
      f'{self._process.args} ended with code {self._process.wait()}; its own '
      'message stands above'
    )

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def serve(answer: Callable[[str], Any]) -> None:
  """Answers lines of standard input until it ends."""
  for line in sys.stdin:
    print(_MARK + json.dumps(answer(line.strip())), flush=True)
