"""TensorBoard's events, written by tensorboardX.

It is imported when the first event is written, and without torch: wherever that
is installed, tensorboardX imports it (two seconds), for methods that nobody
calls here.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import tensorboardX


def writer(logdir: str, **settings: Any) -> 'tensorboardX.SummaryWriter':
  """A writer of events.

  Args:
    logdir: where the files of events go.
    **settings: those of `tensorboardX.SummaryWriter`.
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
