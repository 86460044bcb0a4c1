"""Names of labels: which of theirs is which of ours."""

import re
from collections.abc import Sequence


def order_of(
  theirs: Sequence[str], ours: Sequence[str], *others: Sequence[str]
) -> list[int] | None:
  """Where among other names for the same labels each of ours is.

  Case, spaces and separators do not matter, unless names differ in nothing
  else.

  Args:
    theirs: Names in their order.
    ours: Names in our order.
    *others: What ours may be called as well, in our order.

  Returns:
    The index in `theirs` of each of `ours`; None if they are other labels.

  >>> order_of(['CONTRADICTION', 'Neutral'], ['neutral', 'contradiction'])
  [1, 0]
  >>> order_of(['not_equivalent', 'equivalent'], ['not equivalent', 'other'])
  """
  for names in (ours, *others):
    for plain in (_plain, str):
      there = [plain(name) for name in theirs]
      here = [plain(name) for name in names]
      if len(set(there)) == len(there) and sorted(there) == sorted(here):
        return [there.index(name) for name in here]
  return None


def _plain(name: str) -> str:
  return re.sub(r'[\W_]+', '', name.casefold()) or name
