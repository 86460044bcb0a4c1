"""Sources that turn the rows of others into the instructions of two papers."""

import dataclasses
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lora_opt.data.sources._rows import Row, Rows, describe, where
from lora_opt.reading import values
from lora_opt.reading.values import shown


@dataclasses.dataclass(frozen=True, eq=False)
class ListedChoices(Sequence):
  """Rows of multiple choice, with the choices listed and named.

  Three fields are added, for prompts that ask for the name of a choice, as in
  commonsense_170k:

    listed   'Answer1: blue Answer2: red'
    names    'answer1/answer2'
    right    'answer2'

  Args:
    source: rows with the fields choices and answer (an index). If `word` is
      None, answer is true or false instead; then names is 'true/false', right
      is one of the two, and listed is empty.
    word: what to call a choice.
    separator: text between the listed choices.

  References:
    Hu et al. 2023, LLM-Adapters: An Adapter Family for Parameter-Efficient
    Fine-Tuning of Large Language Models.

  >>> rows = [{'question': 'Sky?', 'choices': ['blue', 'red'], 'answer': 0}]
  >>> row = ListedChoices(rows)[0]
  >>> row['listed'], row['names'], row['right']
  ('Answer1: blue Answer2: red', 'answer1/answer2', 'answer1')
  """

  source: Sequence[Row]
  word: str | None = 'answer'
  separator: str = ' '

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Row:
    row = self.source[index]
    if not isinstance(row, Mapping):
      raise self._error(index, f'expected a dict, found {type(row).__name__}')
    answer, choices = row.get('answer'), row.get('choices', [])
    if self.word is None:
      if not isinstance(answer, bool):
        raise self._error(
          index, f'answer must be a bool, found {shown(answer)}'
        )
      names, listed = ('false', 'true'), ''
    else:
      choices = self._texts(index, choices)
      names = [f'{self.word}{i}' for i in range(1, len(choices) + 1)]
      listed = self.separator.join(
        f'{name.capitalize()}: {choice}'
        for name, choice in zip(names, choices, strict=True)
      )
      whole = isinstance(answer, int) and not isinstance(answer, bool)
      if not whole or not 0 <= answer < len(choices):
        raise self._error(
          index, f'answer {shown(answer)} is not an index of {shown(choices)}'
        )
    added = {
      'listed': listed,
      'names': '/'.join(names if self.word else names[::-1]),
      'right': names[answer],
    }
    return {**row, **added}

  def where(self, index: int) -> str:
    """Where the row came from."""
    return where(self.source, index)

  def facts(self) -> dict[str, Any]:
    """The facts of the source."""
    return describe(self.source)

  def _texts(self, index: int, choices: Any) -> list[str]:
    try:
      return _texts(choices, 'choices')
    except ValueError as error:
      raise self._error(index, str(error)) from None

  def _error(self, index: int, problem: str) -> ValueError:
    return ValueError(f'{self.where(index)}: {problem}')


@dataclasses.dataclass(frozen=True, eq=False)
class NaturalInstructions(Rows):
  """Rows of Super-NaturalInstructions, in the form that Tk-Instruct uses.

  Two fields are added: `examples`, the positive examples as a text, and
  `output`, the first of the references (the original draws a new one in every
  epoch). Definition, input and examples get a full stop at the end if they do
  not end in punctuation.

  Args:
    source: rows as lora_opt.data.prepare makes them from 'super_ni'.
    positive: how many positive examples a prompt shows.
    explanations: whether to show the explanations of the examples.
    tasks, categories: use only these; None uses all.
    limit: use only the first `limit` of the chosen rows.

  References:
    Wang et al. 2022, Super-NaturalInstructions: Generalization via Declarative
    Instructions on 1600+ NLP Tasks.
  """

  source: Sequence[Row]
  positive: int = 2
  explanations: bool = False
  tasks: Collection[str] | None = None
  categories: Collection[str] | None = None
  limit: int | None = None

  @property
  def title(self) -> str:
    return str(self.source)

  def __getitem__(self, index: int) -> Row:
    row = self.source[super().__getitem__(index)]
    try:
      examples = ''.join(self._examples(row) if self.positive else ())
      return {
        **row,
        'definition': _closed(values.text(row['definition'], 'definition')),
        'examples': examples,
        'input': _closed(values.text(row['input'], 'input')),
        'output': _texts(row['outputs'], 'outputs', least=1)[0],
      }
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f'{self.where(index)}: no row of Super-NaturalInstructions: '
        f'{type(error).__name__} {error}'
      ) from error

  def where(self, index: int) -> str:
    """Where the row came from."""
    return where(self.source, self._rows[index])

  def facts(self) -> dict[str, Any]:
    """The facts of the source, and which tasks and categories are used."""
    chosen = {
      name: sorted(value)
      for name in ('tasks', 'categories')
      if (value := getattr(self, name)) is not None
    }
    return describe(self.source) | chosen

  def _load(self) -> Sequence[int]:
    """The indices of the chosen rows in the source."""
    values.integer(self.positive, f'{self.title}: positive', least=0)
    for name in ('tasks', 'categories'):
      if isinstance(getattr(self, name), str):  # `in` would match substrings
        raise ValueError(
          f'{self.title}: {name} must be a list of texts, found '
          f'{getattr(self, name)!r}'
        )
    if self.tasks is None and self.categories is None:
      return range(len(self.source))
    chosen = [i for i in range(len(self.source)) if self._wanted(i)]
    if not chosen:
      raise ValueError(
        f'{self.title}: no row of tasks={self.tasks} and '
        f'categories={self.categories}'
      )
    return chosen

  def _wanted(self, place: int) -> bool:
    try:
      row = self.source[place]
      named = self.tasks is None or row['task'] in self.tasks
      if self.categories is None:
        return named
      mine = _texts(row['categories'], 'categories')
    except (KeyError, TypeError, ValueError):
      return True  # it raises again when it is used; then the task decides
    return named and not set(self.categories).isdisjoint(mine)

  def _examples(self, row: Row) -> list[str]:
    inputs, outputs, explanations = (
      _texts(row[name], name)
      for name in ('example_inputs', 'example_outputs', 'example_explanations')
    )
    found = []
    for number, (first, second, why) in enumerate(
      zip(inputs, outputs, explanations, strict=True), 1
    ):
      parts = [
        f' Positive Example {number} -',
        'Input: ' + _closed(first),
        ' Output: ' + _closed(second),
      ]
      if self.explanations and why.strip():
        parts.append(' Explanation: ' + _closed(why))
      found.append('\n'.join(parts) + '\n\n')
    return found[: self.positive]


def _texts(value: Any, name: str, least: int = 0) -> list[str]:
  """A list of at least `least` texts."""
  if not isinstance(value, list | tuple) or len(value) < least:
    wanted = 'a list of texts' + (', not empty' if least else '')
    raise ValueError(f'{name}: expected {wanted}, found {shown(value)}')
  return [values.text(item, name) for item in value]


def _closed(text: str) -> str:
  """The text, with a full stop if it does not end in punctuation."""
  text = text.strip()
  return text if text[-1:] in string.punctuation else text + '.'
