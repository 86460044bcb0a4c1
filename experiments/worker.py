"""A process that is asked for one measurement at a time, and waits meanwhile.

Programs compared side by side run in processes of their own, so that neither
has the other's threads or memory; taking turns, they meet the same machine.
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
    command: of a process that calls `serve`.
    environment: its variables; None for those of this process.
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
    """What the process answers to a line.

    Raises:
      RuntimeError: it ended instead.
    """
    self._process.stdin.write(question + '\n')
    while line := self._process.stdout.readline():
      # Others print, too.
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
  """Answers lines until there are none."""
  for line in sys.stdin:
    print(_MARK + json.dumps(answer(line.strip())), flush=True)
