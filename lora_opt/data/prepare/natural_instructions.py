"""Super-NaturalInstructions: one file a task, with instances inside."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from lora_opt.data.prepare.readers import Placed

# Wang et al. 2022 train and evaluate on so many instances of each task.
INSTANCES = 100


def read(task_list: pathlib.Path, *, per_task: int = INSTANCES) -> Placed:
  """The first instances of every task of a list (splits/default/*.txt).

  The tasks are files of the folder tasks/ beside splits/.
  """
  folder = task_list.parents[2] / 'tasks'
  for name in task_list.read_text('utf-8').split():
    path = folder / f'{name}.json'
    task = json.loads(path.read_text('utf-8'))
    for number, instance in enumerate(task['Instances'][:per_task]):
      yield f'{path}, instance {number}', (name, task, instance)


def row(raw: tuple[str, dict, dict]) -> dict[str, Any]:
  """The instance, with definition and positive examples of its task."""
  name, task, instance = raw
  outputs = instance['output']
  outputs = [outputs] if isinstance(outputs, str) else outputs
  if not any(text.strip() for text in outputs):
    raise ValueError('the instance has no output')
  definition = task['Definition']
  if not isinstance(definition, str):
    definition = definition[0]
  examples = task['Positive Examples']
  return {
    'task': name,
    'categories': list(task['Categories']),
    'definition': definition,
    **_columns(examples),
    'input': instance['input'],
    'outputs': [text for text in outputs if text.strip()],
  }


def _columns(examples: Sequence[dict[str, str]]) -> dict[str, list[str]]:
  return {
    f'example_{name}s': [example.get(name, '') for example in examples]
    for name in ('input', 'output', 'explanation')
  }


def files(task_list: pathlib.Path) -> Iterator[pathlib.Path]:
  """All files that `read` opens, for checksums."""
  yield task_list
  folder = task_list.parents[2] / 'tasks'
  for name in task_list.read_text('utf-8').split():
    yield folder / f'{name}.json'
