"""Writes TensorBoard events with tensorboardX.

The package is imported with the first writer, and without torch: tensorboardX
imports torch if it is installed (two seconds), for methods not used here.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import tensorboardX


def writer(logdir: str, **settings: Any) -> 'tensorboardX.SummaryWriter':
  """Creates a writer of events.

  Args:
    logdir: the folder for the event files.
    **settings: passed to `tensorboardX.SummaryWriter`.
  """
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # importing it raises ImportError
  try:
    import tensorboardX
  finally:
    if hidden:
      del sys.modules['torch']
  return tensorboardX.SummaryWriter(logdir=logdir, **settings)
