"""Matches two lists of names for the same labels."""

import re
from collections.abc import Sequence


def order_of(
  theirs: Sequence[str], ours: Sequence[str], *others: Sequence[str]
) -> list[int] | None:
  """Finds the index of each of our labels in another list of their names.

  Case, spaces and separators are ignored, unless names differ in nothing else.

  Args:
    theirs: The names in their order.
    ours: The names in our order.
    *others: Alternative names for our labels, in our order.

  Returns:
    The index in `theirs` of each of `ours`; None if the labels are different.

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
