"""The form 'decoder_pairs': two answers to one prompt, in a segment each.

Pair k of a row, counted from 0, has the segments 2k + 1 (chosen) and 2k + 2
(rejected). Both begin with the prompt. `counts` is 1 for each pair in the row:

  tokens       p p c c p p r r r 0 ...
  segment_ids  1 1 1 1 2 2 2 2 2 0 ...
  weights      0 1 1 1 0 1 1 1 1 0 ...   1 where an answer's token is predicted
  counts       1 0 0 ...
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from lora_opt.data.packing import EncodedExample, Row, Sizes, without_middle

POSITIONS_PER_PAIR = 16  # limits the number of pairs in a row


class EncodedPreference(NamedTuple):
  """A prompt and its two answers: see lora_opt.data.packing.Encoded."""

  prompt: np.ndarray  # (p,) int32
  answers: tuple[np.ndarray, np.ndarray]  # (n,) int32 each, chosen first
  learned: tuple[np.ndarray, np.ndarray]  # (n,) bool each
  frame: tuple[int, int] | None = None  # of the prompt; None: never cut it

  @classmethod
  def of_all(cls, task, examples, tokenizer) -> list[Self]:
    return [cls.of(task, example, tokenizer) for example in examples]

  @classmethod
  def of(cls, task, example, tokenizer) -> Self:
    prompt, answers, scored = task.encode_scored(example, tokenizer)
    return cls(
      np.array(prompt, np.int32),
      tuple(np.array(ids, np.int32) for ids in answers),
      tuple(np.array(learned, bool) for learned in scored),
      None if example.dialogues else task.frame(tokenizer),
    )

  @classmethod
  def capacity(cls, length: int) -> Sizes:
    (positions,) = EncodedExample.capacity(length)
    return (positions, -(-positions // POSITIONS_PER_PAIR))

  @classmethod
  def row(cls, examples: Sequence[Self], length: int) -> Row:
    """The arrays of `EncodedExample.row`, and counts, (pairs,) float32."""
    row = EncodedExample.row(
      [segment for example in examples for segment in example.segments()],
      length,
    )
    counts = np.zeros(cls.capacity(length)[1], np.float32)
    counts[: len(examples)] = 1
    return row | {'counts': counts}

  def segments(self) -> list[EncodedExample]:
    """Two segments: the prompt with the chosen and with the rejected answer."""
    size = len(self.prompt)
    return [
      EncodedExample(
        np.concatenate([self.prompt, ids]),
        size,
        learned=np.concatenate([np.zeros(size, bool), learned]),
      )
      for ids, learned in zip(self.answers, self.learned, strict=True)
    ]

  @property
  def sizes(self) -> Sizes:
    answers = sum(map(len, self.answers))
    return (2 * (len(self.prompt) - 1) + answers, 1)

  def truncated(self, length: int) -> Self:
    """Cuts out the middle of the prompt.

    Raises:
      ValueError: The answers alone are too long.
    """
    room = (length - sum(map(len, self.answers))) // 2 + 1
    if self.frame is None or room < 1:
      raise ValueError('its two answers alone are too long: raise length')
    return self._replace(prompt=without_middle(self.prompt, room, self.frame))

  def checksum(self, start: int) -> int:
    for array in (self.prompt, *self.answers, *self.learned):
      start = zlib.crc32(array.tobytes(), start + len(array))
    return start
