"""Rows of instruction tasks that a user wrote into two files each."""

import bisect
import dataclasses
import functools
import pathlib
from typing import Any

from lora_opt.data.sources._blocks import WANTED, Blocks
from lora_opt.data.sources._jsonl import JsonLines
from lora_opt.data.sources._rows import Row, Rows, file_facts
from lora_opt.reading import values
from lora_opt.reading.copies import local_copy
from lora_opt.reading.json_text import read_json
from lora_opt.reading.lines import LONGEST

_META = '.meta.json'


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionFiles(Rows):
  """Instruction tasks of a folder: NAME.meta.json and NAME.train.jsonl each.

  The first file has task, categories, definition and positive_examples (a list
  of objects with input, output and explanation). Each line of the second has
  input and output (a text or a list of references).

  Args:
    folder: the folder.
    split: name of the split, such as 'train'.
    limit: use the first `limit` rows only.
    longest: bytes that a line may have; a longer one raises a ValueError.

  Raises (at first use):
    FileNotFoundError: a task has no file of lines for this split.
    ValueError: a NAME.meta.json is not as described above.
  """

  folder: str
  split: str
  limit: int | None = None
  longest: int = LONGEST

  @property
  def title(self) -> str:
    return f'{self.folder} split {self.split!r}'

  def where(self, index: int) -> str:
    """File and line of the row."""
    number, place = self._place(index)
    return self._lines[number].where(place)

  def facts(self) -> dict[str, Any]:
    """The files, their sizes and their SHA-256."""
    pairs = zip(self._metas, self._lines, strict=True)
    files = [file for meta, lines in pairs for file in (meta, lines.path)]
    return {'files': file_facts(*files)}

  @functools.cached_property
  def _metas(self) -> list[pathlib.Path]:
    folder = local_copy(self.folder)
    return sorted(folder.glob(f'*{_META}'))

  @functools.cached_property
  def _lines(self) -> list[JsonLines]:
    ending = f'.{self.split}.jsonl'
    return [
      JsonLines(
        str(meta.with_name(meta.name.removesuffix(_META) + ending)),
        longest=self.longest,
      )
      for meta in self._metas
    ]

  @functools.cached_property
  def _starts(self) -> list[int]:
    """The index of the first row of each task, then the number of all rows."""
    starts = [0]
    for lines in self._lines:
      if self.limit is None or starts[-1] < self.limit:
        starts.append(starts[-1] + len(lines))
    return starts

  @functools.cached_property
  def _tasks(self) -> list[Row]:
    return [_task(meta) for meta in self._metas]

  def _load(self) -> Blocks:
    _ = self._tasks  # errors in the tasks are raised first
    return Blocks(self._starts[-1], self._read)

  def _place(self, index: int) -> tuple[int, int]:
    """The number of a row's task, and the index of the row in that task."""
    number = bisect.bisect_right(self._starts, index) - 1
    return number, index - self._starts[number]

  def _read(self, index: int) -> list[Row | ValueError]:
    number, place = self._place(index)
    lines = self._lines[number]
    found = [
      _instance(self._tasks[number], lines, line)
      for line in range(place, min(place + WANTED, len(lines)))
    ]
    lines.close()  # there may be more tasks than files that can be open
    return found


def _task(meta: pathlib.Path) -> Row:
  """The fields that all rows of a task share."""
  facts = read_json(meta)

  def texts(key: str) -> list[str]:
    found = values.items(facts.get(key), f'{meta}: {key}')
    return [values.text(item, f'{meta}: {key}') for item in found]

  place = f'{meta}: positive_examples'
  examples = [
    values.table(example, place)
    for example in values.items(facts.get('positive_examples'), place)
  ]
  return {
    'task': values.text(facts.get('task'), f'{meta}: task'),
    'categories': texts('categories'),
    'definition': values.text(facts.get('definition'), f'{meta}: definition'),
  } | {
    f'example_{name}s': [
      values.text(example.get(name, ''), f'{place}: {name}')
      for example in examples
    ]
    for name in ('input', 'output', 'explanation')
  }


def _instance(task: Row, lines: JsonLines, index: int) -> Row | ValueError:
  """The row of a line, or what is wrong with the line."""
  place = lines.where(index)
  try:
    row = lines[index]
    outputs = row['output']
    outputs = [outputs] if isinstance(outputs, str) else outputs
    for output in values.items(outputs, f'{place}: output'):
      values.text(output, f'{place}: output')
    text = values.text(row['input'], f'{place}: input')
    return {**task, 'input': text, 'outputs': outputs}
  except KeyError as error:
    return ValueError(f'{place}: no field {error}')
  except ValueError as error:
    return error
