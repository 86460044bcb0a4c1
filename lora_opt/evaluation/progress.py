"""The bar that shows how far an evaluation is."""

import sys
from collections.abc import Iterable

import tqdm

from lora_opt.reading.values import printable
from lora_opt.training.processes import is_first


def progress(batches: Iterable, what: str) -> Iterable:
  """Batches, counted while they are read.

  A terminal sees a moving bar; a log file a line now and then, if it takes long
  at all.

  Args:
    batches: those that do not know how many they are, are made first.
    what: is done with them.
  """
  seldom = {} if sys.stderr.isatty() else {'delay': 30, 'mininterval': 30}
  return tqdm.tqdm(
    # What knows how many they are is read one by one: images are large.
    batches if hasattr(batches, '__len__') else list(batches),
    desc=printable(what),
    leave=False,
    disable=not is_first(),
    **seldom,
  )
