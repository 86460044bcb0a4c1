"""How long a row is, as a task's feature lengths say."""

from collections.abc import Mapping


def row_length(
  lengths: Mapping[str, int] | None,
) -> int | tuple[int, int]:
  """Positions of a row; of its inputs and targets where both are given.

  >>> row_length({'targets': 64}), row_length({'inputs': 384, 'targets': 64})
  (64, (384, 64))
  >>> row_length(None)
  256
  """
  lengths = lengths or {'targets': 256}
  if 'inputs' in lengths:
    return lengths['inputs'], lengths['targets']
  return lengths['targets']
