"""The six sets of multiple-choice questions, and their prompts."""

import pathlib

from lora_opt.data import sources
from lora_opt.data.tasks import MultipleChoice

# Name in <name>/test.jsonl -> the usual prompt for zero-shot likelihood.
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
  """These rows of one set as a task, which is not trained on."""
  return MultipleChoice(
    name=name,
    train=some_rows,
    eval=some_rows,
    prompt=PROMPTS[name],
    chat=False,
  )


def predictions_file(out: pathlib.Path, name: str) -> pathlib.Path:
  """The file of our predictions, with a line for each question."""
  return out / f'{name}.jsonl'
