"""Looks through all real rows of a folder with every task that finds its own.

  python -m tests.data.real_rows DATA_DIR

prints a line for each task of configs/tasks: rows, bad rows, and evaluation
questions that stand in train too. It ends with status 1 if a row is bad.
"""

import pathlib
import sys

from lora_opt import config

ROOT = pathlib.Path(__file__).parents[2]
NONE = '-'


def look(name: str, folder: str) -> tuple[str, int]:
  """What there is of a task, in words, and how many rows are bad."""
  file = f'configs/tasks/{name}.gin'
  config.load([file], [f'DATA_DIR={folder}'])
  task = _task()
  parts, bad = [], 0
  for split in ('train', 'eval'):
    try:
      rows = len(task.source(split))
    except FileNotFoundError:
      parts.append(f'{NONE:>7}')
      continue
    parts.append(f'{rows:7,}')
    bad += _bad_rows(task, split)
  known = not bad and NONE not in ''.join(parts)
  overlap = str(len(task.overlap())) if known else NONE
  return f'{name:18} {parts[0]} {parts[1]} {bad:4} {overlap:>7}', bad


def _task():
  return config.gin.query_parameter(
    'TASK/gin.macro.value'
  ).scoped_configurable_fn()


def _bad_rows(task, split: str) -> int:
  """Counts the rows that cannot be used, and shows the first."""
  bad, examples = 0, task.examples(split)
  for place in range(len(examples)):
    try:
      assert examples[place].completion
    except ValueError as error:
      bad += 1
      if bad == 1:
        print(f'  {error}')
  return bad


def main(folder: str) -> int:
  print(f'{"task":18} {"train":>7} {"eval":>7} {"bad":>4} {"overlap":>7}')
  total = 0
  for path in sorted((ROOT / 'configs/tasks').glob('*.gin')):
    if 'DATA_DIR' in path.read_text(encoding='utf-8'):
      line, bad = look(path.stem, folder)
      print(line)
      total += bad
  return int(total > 0)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1]))
