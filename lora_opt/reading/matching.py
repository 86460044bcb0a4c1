"""What runs in the process of `lora_opt.reading.patterns`."""

import re
import signal


def find(pattern: str, text: str, last: bool, seconds: float) -> str | None:
  """What the first or the last match says: its first group, or else all.

  Raises:
    TimeoutError: It took more seconds of the processor, which may be busy with
      others for longer.
  """
  if hasattr(signal, 'setitimer'):  # not on every system
    signal.signal(signal.SIGVTALRM, _late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
  try:
    if last:
      found = None
      for found in re.finditer(pattern, text):  # noqa: B007
        pass
    else:
      found = re.search(pattern, text)
  finally:
    if hasattr(signal, 'setitimer'):
      signal.setitimer(signal.ITIMER_VIRTUAL, 0)
  if found is None:
    return None
  said = found[1 if found.re.groups else 0]
  return None if said is None else said.strip()


def _late(*_) -> None:
  raise TimeoutError('it took too long')
