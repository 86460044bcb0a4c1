"""What a source calls the labels that it has numbers for, beside a task's."""

from collections.abc import Sequence
from typing import Any

from lora_opt.reading.label_order import order_of
from lora_opt.reading.values import shown


def names_in(source: Any, field: str) -> Sequence[str] | None:
  """What a source calls the numbers in a field; None if it does not say."""
  return getattr(source, 'class_names', lambda _: None)(field)


def order_in(
  source: Any,
  field: str,
  words: Sequence[str],
  classes: Sequence[str] | None,
  task: str,
) -> Sequence[int] | None:
  """Where among a source's names of labels those of a task are.

  Args:
    source: of the rows.
    field: with the numbers.
    words: what the task says for its labels, in order.
    classes: what it calls them besides; None for the words alone.
    task: its name, for messages.

  Returns:
    For each label of the task its number in the source, the same where the
    source names none; None where the words alone are given and are no names.

  Raises:
    ValueError: The source has other labels.

  >>> order_in([{'label': 0}], 'label', ['no', 'yes'], None, 'spam')
  range(0, 2)
  """
  theirs = names_in(source, field)
  if theirs is None:
    return range(len(words))
  order = order_of(theirs, classes or words, words)
  if order is None and (classes is not None or len(theirs) != len(words)):
    raise ValueError(
      f'task {task!r}: {getattr(source, "title", "its source")} calls the '
      f'labels of field {field!r} {shown(list(theirs))}, the task calls them '
      f'{shown(list(classes or words))}: give the names of the data as '
      'classes, in the order of label_names'
    )
  return order
