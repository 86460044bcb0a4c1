"""Matches a source's names for its label numbers with the labels of a task."""

from collections.abc import Sequence
from typing import Any

from lora_opt.reading.label_order import order_of
from lora_opt.reading.values import shown


def names_in(source: Any, field: str) -> Sequence[str] | None:
  """A source's names for the label numbers in a field; None if it has none."""
  return getattr(source, 'class_names', lambda _: None)(field)


def order_in(
  source: Any,
  field: str,
  words: Sequence[str],
  classes: Sequence[str] | None,
  task: str,
) -> Sequence[int] | None:
  """Finds the number of each of a task's labels in a source.

  Args:
    source: the source of the rows.
    field: name of the field with the label numbers.
    words: the words that the task uses for its labels, in order.
    classes: further names of the task's labels; None if it has only the words.
    task: name of the task, for error messages.

  Returns:
    The number in the source of each label of the task. The numbers are the
    task's own if the source has no names. None if there are only words and they
    are not the source's names.

  Raises:
    ValueError: The source has different labels.

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
