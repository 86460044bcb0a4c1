"""The six sets of questions with choices, and how each is put."""

import pathlib

from lora_opt.data import sources
from lora_opt.data.tasks import MultipleChoice

# Folder of <name>/test.jsonl: the usual prompt of zero-shot likelihood.
PROMPTS = {
  'openbookqa': '{question}',
  'arc_challenge': 'Question: {question}\nAnswer:',
  'siqa': 'Q: {question}\nA:',
  'arc_easy': 'Question: {question}\nAnswer:',
  'piqa': 'Question: {question}\nAnswer:',
  'hellaswag': '{question}',
}
TITLES = {
  'arc_easy': 'ARC-Easy',
  'arc_challenge': 'ARC-Challenge',
  'openbookqa': 'OpenBookQA',
  'hellaswag': 'HellaSwag',
  'piqa': 'PIQA',
  'siqa': 'Social IQa',
}


def rows(data_dir: str, name: str) -> sources.JsonLines:
  """The test file of one set."""
  return sources.JsonLines(f'{name}/test.jsonl', folder=data_dir)


def task(name: str, some_rows) -> MultipleChoice:
  """These rows of one set as a task; nothing is trained on."""
  return MultipleChoice(
    name=name,
    train=some_rows,
    eval=some_rows,
    prompt=PROMPTS[name],
    chat=False,
  )


def predictions_file(out: pathlib.Path, name: str) -> pathlib.Path:
  """Where our predictions are kept, a line for each question."""
  return out / f'{name}.jsonl'
