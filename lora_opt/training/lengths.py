"""The length of a row, from the model or the task's feature lengths."""

from collections.abc import Mapping
from typing import Any


def row_length(
  lengths: Mapping[str, int] | None, model: Any = None
) -> int | tuple[int, int]:
  """Positions in a row, or in its inputs and targets if both are given.

  For a model with a fixed row length, such as an image model, that length.

  >>> row_length({'targets': 64}), row_length({'inputs': 384, 'targets': 64})
  (64, (384, 64))
  >>> row_length(None)
  256
  """
  if (fixed := getattr(model, 'row_length', None)) is not None:
    return fixed
  lengths = lengths or {'targets': 256}
  if 'inputs' in lengths:
    return lengths['inputs'], lengths['targets']
  return lengths['targets']


def tokens_per_batch(model: Any, length: Any, batch_size: int) -> int | None:
  """Positions in a batch, padding included; None if rows are not text.

  >>> tokens_per_batch(None, (384, 64), 2)
  896
  """
  if getattr(model, 'row_length', None) is not None:
    return None
  sizes = (length,) if isinstance(length, int) else length
  return batch_size * sum(sizes)
