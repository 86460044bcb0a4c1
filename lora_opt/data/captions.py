"""Token ids of captions, for a text encoder with inputs of fixed length."""

from typing import Any

import numpy as np


def caption_ids(tokenizer: Any, text: str) -> list[int]:
  """Token ids of a text of any length, between bos_id and eos_id.

  Args:
    tokenizer: It must have bos_id and eos_id.
    text: Any text; '' gives just bos_id and eos_id.
  """
  return [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def padded(tokenizer: Any, ids: list[int], length: int) -> np.ndarray:
  """Pads ids to a length, or truncates them but keeps the last id.

  Returns:
    (length,) int32.
  """
  if len(ids) > length:
    ids = [*ids[: length - 1], ids[-1]]
  pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
  row = np.full(length, pad, np.int32)
  row[: len(ids)] = ids
  return row
