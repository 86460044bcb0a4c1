"""Sources over sources: rows put as the instructions of two papers."""

import dataclasses
import functools
import json
import pathlib
import string
from collections.abc import Collection, Sequence
from typing import Any

from lora_opt.data.sources._jsonl import JsonLines
from lora_opt.data.sources._rows import Row, Rows, describe, file_facts, where


@dataclasses.dataclass(frozen=True, eq=False)
class ListedChoices(Sequence):
  """Rows of multiple choice, with the choices listed and named.

  Three fields are added, for prompts that ask for the name of a choice as
  those of commonsense_170k do:

    listed   'Answer1: blue Answer2: red'
    names    'answer1/answer2'
    right    'answer2'

  Args:
    source: rows with the fields choices and answer (an index); or, with
      `word` None, with an answer that is true or false: names is then
      'true/false', right is one of the two, and there is nothing to list.
    word: what to call a choice.
    separator: between the listed choices.

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
    answer, choices = row.get('answer'), row.get('choices', [])
    if self.word is None:
      if not isinstance(answer, bool):
        raise self._error(index, f'answer must be a bool, found {answer!r}')
      names, listed = ('false', 'true'), ''
    else:
      names = [f'{self.word}{i}' for i in range(1, len(choices) + 1)]
      listed = self.separator.join(
        f'{name.capitalize()}: {choice}'
        for name, choice in zip(names, choices, strict=True)
      )
      if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise self._error(
          index, f'answer {answer!r} is no index of {choices!r}'
        )
    shown = names if self.word else names[::-1]
    added = {
      'listed': listed,
      'names': '/'.join(shown),
      'right': names[answer],
    }
    return {**row, **added}

  def where(self, index: int) -> str:
    """Where the row came from."""
    return where(self.source, index)

  def facts(self) -> dict[str, Any]:
    """Those of the source."""
    return describe(self.source)

  def _error(self, index: int, problem: str) -> ValueError:
    return ValueError(f'{self.where(index)}: {problem}')


@dataclasses.dataclass(frozen=True, eq=False)
class NaturalInstructions(Rows):
  """Rows of Super-NaturalInstructions, put as Tk-Instruct puts them.

  Added are `examples`, the positive examples as a text, and `output`, the
  first of the references: the original draws one of them anew in every epoch.
  Definition, input and examples end in a full stop if they end in no
  punctuation.

  Args:
    source: rows as lora_opt.data.prepare makes them of 'super_ni'.
    positive: how many positive examples a prompt shows.
    explanations: show why an example is one.
    tasks, categories: use only these; None uses all.
    limit: use the first `limit` of them only.

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
      examples = ''.join(self._example(row, i) for i in range(self.positive))
      return {
        **row,
        'definition': _closed(row['definition']),
        'examples': examples,
        'input': _closed(row['input']),
        'output': row['outputs'][0],
      }
    except (AttributeError, IndexError, KeyError, TypeError) as error:
      raise ValueError(
        f'{self.where(index)}: no row of Super-NaturalInstructions: '
        f'{type(error).__name__} {error}'
      ) from error

  def where(self, index: int) -> str:
    """Where the row came from."""
    return where(self.source, self._rows[index])

  def facts(self) -> dict[str, Any]:
    """Those of the source, and what was chosen of it."""
    chosen = {
      name: sorted(value)
      for name in ('tasks', 'categories')
      if (value := getattr(self, name)) is not None
    }
    return describe(self.source) | chosen

  def _load(self) -> Sequence[int]:
    """The places of the chosen rows in the source."""
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
      mine = row['categories'] if self.categories is not None else ()
    except (KeyError, TypeError, ValueError):
      return True  # it raises again when it is used: the task decides
    return named and (
      self.categories is None or not set(self.categories).isdisjoint(mine)
    )

  def _example(self, row: Row, number: int) -> str:
    if number >= len(row['example_inputs']):
      return ''
    parts = [
      f' Positive Example {number + 1} -',
      'Input: ' + _closed(row['example_inputs'][number]),
      ' Output: ' + _closed(row['example_outputs'][number]),
    ]
    explanation = row['example_explanations'][number]
    if self.explanations and explanation.strip():
      parts.append(' Explanation: ' + _closed(explanation))
    return '\n'.join(parts) + '\n\n'


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionFiles(Rows):
  """Instruction tasks of a folder: NAME.meta.json and NAME.train.jsonl each.

  The first holds task, categories, definition and positive_examples (a list
  of input, output and explanation), the second lines of input and output (a
  text or a list of references).

  Args:
    folder: the folder.
    split: 'train', say.
    limit: use the first `limit` rows only.
  """

  folder: str
  split: str
  limit: int | None = None

  @property
  def title(self) -> str:
    return f'{self.folder} split {self.split!r}'

  def where(self, index: int) -> str:
    """File and line of the row."""
    for meta in self._metas:
      lines = JsonLines(str(self._lines(meta)))
      if index < len(lines):
        return lines.where(index)
      index -= len(lines)
    raise IndexError(f'{self.title} has {len(self)} rows')

  def facts(self) -> dict[str, Any]:
    """The files, their sizes and their SHA-256."""
    files = [f for meta in self._metas for f in (meta, self._lines(meta))]
    return {'files': file_facts(*files)}

  @functools.cached_property
  def _metas(self) -> list[pathlib.Path]:
    folder = pathlib.Path(self.folder).expanduser()
    return sorted(folder.glob('*.meta.json'))

  def _lines(self, meta: pathlib.Path) -> pathlib.Path:
    return meta.with_name(
      meta.name.replace('.meta.json', f'.{self.split}.jsonl')
    )

  def _load(self) -> list[Row | ValueError]:
    rows = []
    for meta in self._metas:
      facts = json.loads(meta.read_text('utf-8'))
      examples = facts['positive_examples']
      task = {
        'task': facts['task'],
        'categories': facts['categories'],
        'definition': facts['definition'],
      } | {
        f'example_{name}s': [e.get(name, '') for e in examples]
        for name in ('input', 'output', 'explanation')
      }
      lines = JsonLines(str(self._lines(meta)))
      rows += [_instance(task, lines, i) for i in range(len(lines))]
    return rows


def _instance(task: Row, lines: JsonLines, index: int) -> Row | ValueError:
  """The row of a line, or what is wrong with the line."""
  try:
    row = lines[index]
    outputs = row['output']
    outputs = [outputs] if isinstance(outputs, str) else outputs
    return {**task, 'input': row['input'], 'outputs': outputs}
  except KeyError as error:
    return ValueError(f'{lines.where(index)}: no field {error}')
  except ValueError as error:
    return error


def _closed(text: str) -> str:
  """The text, ending in punctuation."""
  text = text.strip()
  return text if text[-1:] in string.punctuation else text + '.'
