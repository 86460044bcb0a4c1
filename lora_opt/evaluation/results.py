"""Stores results of evaluations as files, and shows them in one table."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lora_opt import writing
from lora_opt.evaluation import _text
from lora_opt.evaluation._text import Json
from lora_opt.evaluation.metrics import LOWER, NUMBER
from lora_opt.run_folder import run_directory, run_files

# Where `--run_mode=eval` writes results, in the folder of a run.
FOLDER = 'evaluation/scores'
HEADER = ('Task', 'Metric', 'Score', '95 % interval', 'Examples')


def write_result(model_dir: pathlib.Path, result: Json) -> None:
  """Writes an evaluation: scores as JSON, predictions as JSON lines next to it.

  Args:
    model_dir: the run's folder.
    result: what an evaluator returned.
  """
  scores = dict(result)
  predictions = scores.pop('predictions')
  name = writing.file_name(result['task'])
  run_directory.write_json(model_dir / FOLDER / f'{name}.json', scores)
  write_lines(model_dir / FOLDER / f'{name}.jsonl', predictions)


def write_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows as JSON lines."""
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  writing.write_text(path, ''.join(lines))


def result_files(model_dir: pathlib.Path) -> list[pathlib.Path]:
  """The files that `write_result` left in a run's folder."""
  return sorted((model_dir / FOLDER).glob('*.json'))


def read_result(file: pathlib.Path) -> Json:
  """Reads one of the files; checks that it has all that `table` shows.

  Raises:
    ValueError: it is damaged.
  """
  result = run_files.read_evaluation(file)
  for name in ('task', 'num_examples', 'metrics'):
    if name not in result:
      raise ValueError(f'{file}: {name} is missing')
  return result


def table(results: Sequence[Json]) -> list[tuple[str, ...]]:
  """A row for each score of each task; see `HEADER`.

  Scores are in percent, except for losses and numbers of other kinds.

  Scores without the examples that are also in the training data have separate
  rows.

  >>> score = {'score': 0.25, 'interval': [0.1, 0.4]}
  >>> result = {'task': 'sky', 'num_examples': 8, 'metrics': {'f1': score}}
  >>> print(_text.aligned(table([result])))
  sky  f1  25.0  10.0 to 40.0  8
  """
  rows = []
  for result in results:
    count = result['num_examples']
    rows += _rows(result['task'], result['metrics'], count)
    if overlap := result.get('overlap'):
      rest = count - overlap['num_examples']
      name = f'{result["task"]}, none of train'
      rows += _rows(name, overlap['metrics'], rest)
  return rows


def format_results(results: Sequence[Json]) -> str:
  """The table with its header, as aligned text."""
  return _text.aligned([HEADER, *table(results)])


def _rows(task: str, metrics: Json, count: int) -> list[tuple[str, ...]]:
  rows = []
  for metric, found in metrics.items():
    plain = found.get(LOWER) or found.get(NUMBER)
    scale, form = (1, '{:.4f}') if plain else (100, '{:.1f}')
    score, low, high = (
      _text.show(None if x is None else scale * x, form)
      for x in (found['score'], *found['interval'])
    )
    rows.append((task, metric, score, f'{low} to {high}', f'{count:,}'))
  return rows
