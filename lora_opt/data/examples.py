"""Examples: what a task makes from a row, and checks of the row's fields."""

import dataclasses
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lora_opt.data import sources
from lora_opt.data.dialogue import Dialogue
from lora_opt.data.images import ImageFile
from lora_opt.reading import values
from lora_opt.reading.values import shown

_SHOWN = 3  # bad rows whose errors are reported
_DIGITS = 40  # of a whole number; 2^64 has 20


@dataclasses.dataclass(frozen=True)
class Example:
  """One question as text, before any chat template.

  Attributes:
    prompt: the text that the model is given.
    completion: the text that the model should write.
    choices: the possible completions; empty for generation.
    answer: index of the right choice; None for generation.
    row: the row that this example was made from.
    references: all texts that would be right, if there are several.
    texts: the one or two texts that an encoder reads; if empty, it reads the
      prompt.
    number: the target value of a regression; None for other tasks.
    image: the image that an image model reads; None for other tasks.
    dialogues: one conversation per choice, ending with that choice; empty if
      the example is just a prompt and choices.
  """

  prompt: str
  completion: str
  choices: tuple[str, ...] = ()
  answer: int | None = None
  row: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  references: tuple[str, ...] = ()
  texts: tuple[str, ...] = ()
  number: float | None = None
  image: ImageFile | None = None
  dialogues: tuple[Dialogue, ...] = ()

  def characters(self) -> int:
    """How many characters there are to tokenize."""
    if self.dialogues:
      return sum(dialogue.characters() for dialogue in self.dialogues)
    texts = (self.prompt, *self.texts, *(self.choices or (self.completion,)))
    return sum(map(len, texts))


class Examples(Sequence):
  """The examples of one split, made from the rows on demand.

  Args:
    source: the rows.
    make: makes an example from a row.
    split: 'train' or 'eval'.
    indices: the rows that make up the split; None takes all.
  """

  def __init__(
    self,
    source: Sequence[sources.Row],
    make: Callable[['Record'], Example],
    split: str,
    indices: Sequence[int] | None = None,
  ):
    self.source, self.split, self._make = source, split, make
    self.indices = range(len(source)) if indices is None else indices
    if not len(self.indices):
      rows = f' ({len(source)} rows, none can be used)' if len(source) else ''
      raise ValueError(f'the {split} split is empty: {source!r}{rows}')

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f'the {self.split} split has no example {index}')
    row = self.indices[index]
    return self._make(Record(self.source[row], self.source, row, self.split))

  def without(self, places: Collection[int]) -> 'Examples':
    """The examples without those at these indices."""
    left_out = set(places)
    kept = [r for i, r in enumerate(self.indices) if i not in left_out]
    return Examples(self.source, self._make, self.split, kept)

  def usable(self) -> tuple['Examples', 'BadRows']:
    """The examples that can be made, and what is wrong with the others."""
    bad, first = [], []
    for place in range(len(self)):
      try:
        self[place]
      except ValueError as error:
        bad.append(place)
        if len(bad) <= _SHOWN:
          first.append(str(error))
    return self.without(bad), BadRows(len(bad), first)


class BadRows(NamedTuple):
  """How many rows cannot be used, and what is wrong with the first few."""

  count: int = 0
  first: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Record:
  """One row and where it came from, for error messages."""

  row: Mapping[str, Any]
  source: Sequence[sources.Row]
  index: int
  split: str

  @property
  def place(self) -> str:
    """Where the row came from, in words."""
    return sources.where(self.source, self.index, self.split)

  def error(self, problem: str) -> ValueError:
    """A ValueError that names the place."""
    return ValueError(f'{self.place}: {problem}')

  def field(self, name: str) -> Any:
    """The value of field `name`, which must exist."""
    if not isinstance(self.row, Mapping):
      raise self.error(f'expected a dict, found {type(self.row).__name__}')
    if name not in self.row:
      available = ', '.join(map(_named, list(self.row)[:20])) or 'none'
      raise self.error(f'no field {name!r}; available fields: {available}')
    return self.row[name]

  def text(self, name: str) -> str:
    """The value of field `name` as text; numbers are written out.

    Only numbers with one usual spelling are accepted: whole numbers, and others
    that Python writes without an exponent, such as 2.5.
    """
    value = self.field(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
      raise self.error(
        f'field {name!r} must be text, found {type(value).__name__} '
        f'{shown(value)}'
      )
    if isinstance(value, str):
      return self._checked(value, name)
    text = written(value)
    if text is None:
      raise self.error(
        f'field {name!r} must be text, and the number {shown(value)} can be '
        'written in several ways or in none: write it as text'
      )
    return text

  def texts(self, name: str, at_least: int = 2) -> tuple[str, ...]:
    """The value of field `name`, a list of `at_least` or more texts."""
    value = self.field(name)
    if not isinstance(value, list | tuple) or len(value) < at_least:
      count = {1: 'one text', 2: 'two texts'}[at_least]
      raise self.error(
        f'field {name!r} must be a list of at least {count}, found '
        f'{shown(value)}'
      )
    for item in value:
      if not isinstance(item, str) or not item:
        raise self.error(f'field {name!r} must hold texts, found {shown(item)}')
      self._checked(item, name)
    return tuple(value)

  def _checked(self, text: str, name: str) -> str:
    if text.isascii():
      return text
    try:
      return values.text(text, f'field {name!r}')
    except ValueError as error:
      raise self.error(str(error)) from None

  def fill(self, template: str, **names: str) -> str:
    """Fills a template with this row's fields.

    Args:
      template: text with field names in braces.
      **names: names of fields in the row by their names in the template, where
        the two differ.
    """
    fields = Template(template).fields
    texts = {name: self.text(names.get(name, name)) for name in fields}
    return template.format(**texts)


def _named(key: Any) -> str:
  return shown(key, 40)[1:-1] if isinstance(key, str) else shown(key, 40)


def written(value: Any) -> str | None:
  """Text as it is, and a number as text if it has one usual spelling.

  >>> written('two'), written(2), written(2.5), written(1e-9), written(True)
  ('two', '2', '2.5', None, None)
  """
  if isinstance(value, str):
    return value
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  if isinstance(value, int):
    return str(value) if abs(value) < 10**_DIGITS else None
  text = str(float(value))
  return text if text.lstrip('-').replace('.', '', 1).isdigit() else None


@dataclasses.dataclass(frozen=True)
class Template:
  """Text with field names in braces, checked on creation.

  >>> Template('Question: {question} Answer:').fields
  ('question',)

  Raises:
    ValueError: the braces are unbalanced, or hold more than a plain name.
  """

  text: str

  @property
  def fields(self) -> tuple[str, ...]:
    parts = string.Formatter().parse(self.text)
    return tuple(part[1] for part in parts if part[1] is not None)

  def __post_init__(self):
    try:
      parts = list(string.Formatter().parse(self.text))
    except (ValueError, TypeError) as error:
      raise ValueError(
        f'template {self.text!r}: {error}. Braces hold field names; write '
        '{{ and }} for braces in the text'
      ) from error
    for _, name, form, conversion in parts:
      if name is not None and (not name.isidentifier() or form or conversion):
        raise ValueError(
          f'template {self.text!r}: {name!r} is not a plain field name. Write '
          '{{ and }} for braces in the text'
        )
