"""Captions as a text encoder of fixed length reads them."""

from typing import Any

import numpy as np


def caption_ids(tokenizer: Any, text: str) -> list[int]:
  """Token ids of a text, opened and ended, of whatever length.

  Args:
    tokenizer: With bos_id and eos_id.
    text: Any; '' is but opened and ended.
  """
  return [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def padded(tokenizer: Any, ids: list[int], length: int) -> np.ndarray:
  """Ids filled up to a length, or cut to it with the last one kept.

  Returns:
    (length,) int32.
  """
  if len(ids) > length:
    ids = [*ids[: length - 1], ids[-1]]
  pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
  row = np.full(length, pad, np.int32)
  row[: len(ids)] = ids
  return row
