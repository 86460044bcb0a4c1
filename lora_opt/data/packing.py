"""Packing: which examples share a row, and what the row contains.

The size of every example is known, so a whole epoch is planned with integers
alone. The examples are shuffled, and every few hundred of them are sorted with
the longest first. Each is put into the row that it fills best, and the rows are
shuffled.
"""

import bisect
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from lora_opt.data.order import Order

# Number of examples that are sorted by size at a time. In purely random order,
# the rows begun early use up the short examples, which are then missing to fill
# the gaps beside long ones. Sorting a whole epoch would put examples of the
# same size into every row.
WINDOW = 256

Row = dict[str, np.ndarray]
Sizes = tuple[int, ...]


class Encoded(Protocol):
  """A tokenised example, and how examples of its class are laid out in rows.

  Each form of batches (lora_opt.data.forms) has one such class. A row may have
  several axes, such as inputs and targets; an example needs room on all.
  """

  @classmethod
  def of_all(cls, task, examples, tokenizer) -> list[Self]:
    """Tokenises examples of a task."""

  @classmethod
  def capacity(cls, length: Any) -> Sizes:
    """The capacity of a row along each axis."""

  @classmethod
  def row(cls, examples: Sequence[Self], length: Any) -> Row:
    """The arrays of a row that these examples share."""

  @property
  def sizes(self) -> Sizes:
    """The room that this example takes along each axis."""

  def truncated(self, length: Any) -> Self:
    """The example, shortened to fit into a row."""

  def checksum(self, start: int) -> int:
    """CRC-32 of the example, continued from `start`."""


class EncodedExample(NamedTuple):
  """An example of the form 'decoder': the prompt followed by the completion.

  n ids make a segment of n - 1 positions. Position t reads ids[t] and predicts
  ids[t + 1], with weight 1 if that id belongs to the completion. So no target
  ever crosses from one segment into the next. For conversations of several
  turns, `learned` says which ids have weight.
  """

  ids: np.ndarray  # (n,) int32
  prompt_length: int  # number of ids in the prompt
  frame: tuple[int, int] = (0, 0)  # numbers of ids that open and close it
  learned: np.ndarray | None = None  # (n,) bool; None: all after the prompt

  @classmethod
  def of_all(cls, task, examples, tokenizer) -> list[Self]:
    if any(example.dialogues for example in examples):
      return [cls._of_dialogue(task, one, tokenizer) for one in examples]
    found = task.encode_all(examples, tokenizer)
    return [
      cls(
        np.array(prompt + completion, np.int32),
        len(prompt),
        task.frame(tokenizer),
      )
      for prompt, completion in found
    ]

  @classmethod
  def _of_dialogue(cls, task, example, tokenizer) -> Self:
    prompt, (rest,), (scored,) = task.encode_scored(example, tokenizer)
    learned = np.array([False] * len(prompt) + scored)
    return cls(np.array(prompt + rest, np.int32), len(prompt), (0, 0), learned)

  @classmethod
  def capacity(cls, length: int) -> Sizes:
    if not isinstance(length, int):
      raise ValueError(
        f'length={length!r} must be one number: a decoder reads prompt and '
        "completion from one row, that of {'targets': ...}"
      )
    return (length,)

  @classmethod
  def row(cls, examples: Sequence[Self], length: int) -> Row:
    """Tokens, targets, weights, positions and segment_ids, (length,) each."""
    row = {
      name: np.zeros(length, np.int32)
      for name in ('tokens', 'targets', 'positions', 'segment_ids')
    }
    row['weights'] = np.zeros(length, np.float32)
    start = 0
    for number, (ids, prompt_length, _, learned) in enumerate(examples, 1):
      end = start + len(ids) - 1
      row['tokens'][start:end] = ids[:-1]
      row['targets'][start:end] = ids[1:]
      if learned is None:
        row['weights'][start + prompt_length - 1 : end] = 1
      else:
        row['weights'][start:end] = learned[1:]
      row['positions'][start:end] = np.arange(end - start)
      row['segment_ids'][start:end] = number
      start = end
    return row

  @property
  def sizes(self) -> Sizes:
    # The last token is only predicted, never read.
    return (len(self.ids) - 1,)

  def truncated(self, length: int) -> Self:
    """Cuts the middle of the prompt, and the end of a completion if too long.

    Raises:
      ValueError: The example is a conversation, which is shortened by leaving
        out whole turns instead; or the length is too small for what must stay.
    """
    if self.learned is not None:
      raise ValueError('its last turn alone is too long: raise length')
    prompt, completion = np.split(self.ids, [self.prompt_length])
    framed = max(1, sum(self.frame))
    completion = completion[: max(1, length + 1 - framed)]
    room = length + 1 - len(completion)
    prompt = without_middle(prompt, room, self.frame)
    return self._replace(
      ids=np.concatenate([prompt, completion]), prompt_length=len(prompt)
    )

  def checksum(self, start: int) -> int:
    start = zlib.crc32(self.ids.tobytes(), start + self.prompt_length)
    learned = self.learned
    return start if learned is None else zlib.crc32(learned.tobytes(), start)


def without_middle(
  ids: np.ndarray, room: int, frame: tuple[int, int]
) -> np.ndarray:
  """Cuts a prompt to `room` ids, keeping as much of its start as of its end.

  Args:
    ids: The ids of the prompt.
    room: How many ids to keep at most.
    frame: How many ids open and close the prompt. These are always kept: the
      token that texts begin with, and the headers of a chat's turns.

  Raises:
    ValueError: There is no room for the frame.

  >>> without_middle(np.arange(10), 6, (2, 1))
  array([0, 1, 2, 7, 8, 9])
  """
  opening, closing = frame
  free = room - opening - closing
  if len(ids) <= room:
    return ids
  if free < 0:
    raise ValueError(
      f'what opens and closes its prompt takes {opening + closing} positions, '
      f'and there are {room}: raise length'
    )
  first = opening + free // 2
  return np.concatenate([ids[:first], ids[len(ids) - (room - first) :]])


def best_fit(
  sizes: Sequence[Sizes], order: Sequence[int], capacity: Sizes
) -> list[list[int]]:
  """Puts each item into the row where it leaves least room on the first axis.

  Args:
    sizes: size of each item along each axis, none above `capacity`.
    order: the order in which to take the items.
    capacity: capacity of a row along each axis.

  Returns:
    The items of each row, with the rows in the order in which they were begun.

  >>> best_fit([(3,), (4,), (2,), (1,)], [0, 1, 2, 3], (5,))
  [[0, 2], [1, 3]]
  >>> best_fit([(3, 9), (4, 1), (2, 2), (1, 1)], [0, 1, 2, 3], (5, 9))
  [[0], [1, 3], [2]]
  """
  rows: list[list[int]] = []
  open_rows: list[tuple[Sizes, int]] = []  # (room left, row), least room first
  for item in order:
    size = sizes[item]
    place = bisect.bisect_left(open_rows, (size[:1],))
    while place < len(open_rows) and not _fits(size, open_rows[place][0]):
      place += 1
    if place < len(open_rows):
      room, row = open_rows.pop(place)
    else:
      room, row = capacity, len(rows)
      rows.append([])
    rows[row].append(item)
    left = tuple(r - s for r, s in zip(room, size, strict=True))
    if all(left):
      bisect.insort(open_rows, (left, row))
  return rows


def longest_first(
  sizes: Sequence[Sizes], order: Sequence[int], window: int = WINDOW
) -> list[int]:
  """Sorts every `window` items of an order by their size on the first axis.

  >>> longest_first([(3,), (4,), (2,), (5,)], [0, 1, 2, 3], window=2)
  [1, 0, 3, 2]
  """
  ordered: list[int] = []
  for start in range(0, len(order), window):
    items = order[start : start + window]
    ordered += sorted(items, key=lambda item: -sizes[item][0])
  return ordered


def _fits(size: Sizes, room: Sizes) -> bool:
  return all(s <= r for s, r in zip(size, room, strict=True))


class Rows(NamedTuple):
  """Tokenised examples, their order, and the rows made of them."""

  examples: Sequence[Encoded]  # none larger than a row
  order: Order
  length: Any  # of a row, in the form that the examples' class takes
  packing: bool  # False puts one example into each row

  def plan(self, epoch: int) -> list[list[int]]:
    """The examples of each row of an epoch."""
    rng = self.order.rng(epoch)
    order = self.order.indices(epoch, rng)
    if not self.packing:
      return [[index] for index in order]
    sizes = [example.sizes for example in self.examples]
    if rng is not None:
      order = longest_first(sizes, order)
    rows = best_fit(sizes, order, self._kind.capacity(self.length))
    if rng is not None:
      # Rows begun late are emptier: they must not all come last.
      rng.shuffle(rows)
    return rows

  def row(self, indices: Sequence[int]) -> Row:
    """The arrays of one row, or of an empty row if no example is given."""
    examples = [self.examples[index] for index in indices]
    return self._kind.row(examples, self.length)

  def fingerprint(self) -> int:
    """A checksum that changes with the examples, their order and settings."""
    settings = (self.length, self.packing and WINDOW, self.order)
    total = zlib.crc32(repr(settings).encode())
    for example in self.examples:
      total = example.checksum(total)
    return total

  @property
  def _kind(self) -> type[Encoded]:
    return type(self.examples[0])
