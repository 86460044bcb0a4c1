"""Super-NaturalInstructions: one file per task, with its instances inside."""

import pathlib
from collections.abc import Iterator
from typing import Any

from lora_opt.data.prepare.fields import text, texts
from lora_opt.data.prepare.readers import Placed
from lora_opt.reading import values
from lora_opt.reading.files import inside, read_text
from lora_opt.reading.json_text import parse_json
from lora_opt.reading.values import shown

# Wang et al. 2022 train and evaluate on this many instances of each task.
INSTANCES = 100


def read(task_list: pathlib.Path, *, per_task: int = INSTANCES) -> Placed:
  """The first instances of every task in a list (splits/default/*.txt).

  The tasks are files in the folder tasks/ next to splits/.
  """
  for path in _task_files(task_list):
    # Half a surrogate pair in one instance must not affect the others.
    task = parse_json(read_text(path), str(path), surrogates=True)
    values.table(task, str(path))
    instances = values.items(task.get('Instances'), f'{path}: Instances')
    for number, instance in enumerate(instances[:per_task]):
      yield f'{path}, instance {number}', (path.stem, task, instance)


def row(raw: tuple[str, dict, dict]) -> dict[str, Any]:
  """The instance, with the definition and positive examples of its task."""
  name, task, instance = raw
  values.table(instance, 'the instance')
  outputs = [one for one in texts(instance, 'output', one=True) if one.strip()]
  if not outputs:
    raise ValueError('the instance has no output')
  definitions = texts(task, 'Definition', one=True)
  if not definitions:
    raise ValueError('the task has no definition')
  return {
    'task': name,
    'categories': texts(task, 'Categories'),
    'definition': definitions[0],
    **_columns(task),
    'input': text(instance, 'input'),
    'outputs': outputs,
  }


def _columns(task: dict[str, Any]) -> dict[str, list[str]]:
  place = 'Positive Examples'
  examples = values.items(task[place], place)
  for example in examples:
    values.table(example, place)
  return {
    f'example_{name}s': [
      text(example, name) if name in example else '' for example in examples
    ]
    for name in ('input', 'output', 'explanation')
  }


def files(task_list: pathlib.Path) -> Iterator[pathlib.Path]:
  """All files that `read` opens, for checksums."""
  yield task_list
  yield from _task_files(task_list)


def _task_files(task_list: pathlib.Path) -> Iterator[pathlib.Path]:
  folder = task_list.parents[2] / 'tasks'
  for name in read_text(task_list).split():
    path = inside(folder, f'{name}.json', str(task_list))
    if not path.is_file():
      raise FileNotFoundError(
        f'{task_list} names {shown(name)}, and there is no {path}'
      )
    yield path
