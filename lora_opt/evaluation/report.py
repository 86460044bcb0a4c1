"""Writes the report of one run, a self-contained HTML file.

`write_report` reads the files that a run left in its folder. Any of them may be
missing, for example after a run that was killed or never evaluated; its section
is then left out.

  python -m lora_opt.evaluation.report MODEL_DIR
"""

import argparse
import collections
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import markupsafe

from lora_opt import writing
from lora_opt.buckets.paths import as_path
from lora_opt.evaluation import (
  _html,
  _text,
  classes,
  comparison,
  curves,
  history,
  picture_files,
  results,
)
from lora_opt.evaluation._text import Json
from lora_opt.evaluation.comparison import format_table
from lora_opt.evaluation.metrics import LOWER
from lora_opt.reading.files import read_text
from lora_opt.run_folder import run_files

__all__ = ['format_table', 'write_report']

REPORT_FILE = 'report.html'
_SAMPLES = 3  # number of examples shown of each kind
_PICTURE = re.compile(r'data:image/png;base64,[A-Za-z0-9+/]+={0,2}')
_LONGEST_PICTURE = 100_000


class Answer(NamedTuple):
  """The model's answer to an example, and whether it is right."""

  text: str
  mark: str
  right: bool


class Sample(NamedTuple):
  """One example with the answers before and after; None if not evaluated."""

  prompt: str
  reference: str
  choices: Sequence[str]
  picture: str  # a data URL; '' for none
  before: Answer | None
  after: Answer | None


class Group(NamedTuple):
  """Examples on which training had the same effect."""

  name: str
  samples: list[Sample]


def write_report(model_dir: str | Path) -> Path:
  """Writes `report.html` from what a run left in its folder.

  Args:
    model_dir: the folder of the run. These are read if they exist:
      `metrics.jsonl`, `run.json`, `dataset.json`, `evaluation/before.json`,
      `evaluation/after.json`, `evaluation/pictures/`, `evaluation/scores/` and
      `operative_config.gin`.

  Returns:
    The path of the report. A damaged file is left out, and is named on the page
    and on standard error.

  Raises:
    FileNotFoundError: there is no such folder.
    OSError: the report cannot be written.
  """
  model_dir = as_path(model_dir)
  if not model_dir.is_dir():
    raise FileNotFoundError(f'{model_dir}: no such folder; give a MODEL_DIR')
  files = _Files(model_dir)
  run = files.read(run_files.read_run, 'run.json')
  before = files.read(run_files.read_evaluation, 'evaluation/before.json')
  after = files.read(run_files.read_evaluation, 'evaluation/after.json')
  data = files.read(run_files.read_data, 'dataset.json')
  scored = [
    files.read(results.read_result, str(file.relative_to(model_dir)))
    for file in results.result_files(model_dir)
  ]
  rows = history.read_metrics(model_dir)
  files.note(history.problems(model_dir))
  drawings = curves.draw_curves(rows, [e for e in (before, after) if e])
  return _html.write(
    model_dir / REPORT_FILE,
    'report.html.jinja',
    title=_text.first('task', run, after, before) or model_dir.resolve().name,
    subtitle=[run[k] for k in ('model', 'optimizer') if run.get(k)],
    rows=comparison.compare(before, after),
    tracks=_tracks(before, after),
    header=results.HEADER,
    scores=results.table(list(filter(None, scored))),
    curves=[c._replace(svg=markupsafe.Markup(c.svg)) for c in drawings],
    diverged=[r['step'] for r in rows if 'loss' in r and r['loss'] is None],
    classes=classes.by_class(before, after),
    groups=_groups(before, after),
    pictures=files.pictures(),
    shown=_SAMPLES,
    facts=_facts(run, rows) + _data_facts(data),
    command=run.get('command'),
    config=files.text('operative_config.gin'),
    problems=files.problems,
  )


def _tracks(before: Json, after: Json) -> list[tuple[str, list[float]]]:
  """Score and interval in percent, for the bars under the table."""
  if LOWER in {**before, **after}:
    return []  # a loss is not a percentage
  scores = (
    ('Before', comparison.score_interval(before)),
    ('After', comparison.score_interval(after)),
  )
  return [(name, [100 * x for x in score]) for name, score in scores if score]


def _groups(before: Json, after: Json) -> list[Group]:
  """Examples by the effect of training, in the evaluation's order."""
  if LOWER in {**before, **after}:
    return []  # a loss is not right or wrong
  answers: dict[tuple[str, str, int], dict[str, Json]] = {}
  for side, summary in (('before', before), ('after', after)):
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    for row in summary.get('predictions') or ():
      key = str(row.get('prompt', '')), str(row.get('reference', ''))
      seen[key] += 1  # the same question may be asked twice
      answers.setdefault((*key, seen[key]), {})[side] = row
  groups = {
    name: Group(name, [])
    for name in ('Became right', 'Became wrong', 'Right both times',
                 'Wrong both times', 'Right', 'Wrong')
  }  # fmt: skip
  for (prompt, reference, _), sides in answers.items():
    choices = [str(c) for c in _text.first('choices', *sides.values()) or ()]
    picture = _picture(_text.first('picture', *sides.values()))
    if picture or all(choice in prompt for choice in choices):
      choices = []
    old, new = _answer(sides.get('before')), _answer(sides.get('after'))
    sample = Sample(prompt, reference, choices, picture, old, new)
    groups[_kind(old, new)].samples.append(sample)
  return [group for group in groups.values() if group.samples]


def _picture(value: Any) -> str:
  """The value if it is a PNG data URL; nothing else may get into the page."""
  small = isinstance(value, str) and len(value) < _LONGEST_PICTURE
  return value if small and _PICTURE.fullmatch(value) else ''


def _answer(row: Json | None) -> Answer | None:
  if row is None:
    return None
  score = _text.number(row.get('score')) or 0.0
  right = score > 1 - 1e-6
  mark = '✓ right' if right else f'{score:.2f}' if score > 0 else '✗ wrong'
  return Answer(str(row.get('prediction', '')), mark, right)


def _kind(old: Answer | None, new: Answer | None) -> str:
  word = 'right' if (new or old).right else 'wrong'
  if old is None or new is None:
    return word.capitalize()
  if old.right == new.right:
    return f'{word.capitalize()} both times'
  return f'Became {word}'


def _facts(run: Json, rows: Sequence[Json]) -> list[tuple[str, str]]:
  """Names and values of the known facts about the run."""
  train = [row for row in rows if row.get('split') == 'train']
  steps = _text.number(run.get('steps'))
  if steps is None:
    steps = max((row['step'] for row in train), default=None)
  skipped = max((row.get('skipped_steps') or 0 for row in train), default=0)
  trainable = _text.number(run.get('trainable_parameters'))
  frozen = _text.number(run.get('frozen_parameters'))
  share = ''
  if trainable and frozen:
    share = f' ({100 * trainable / (trainable + frozen):.2g} % of all)'
  memory = _text.number(run.get('peak_memory_bytes'))
  waiting = _text.number(run.get('data_wait_fraction'))
  filled = _mean(row.get('non_padding_fraction') for row in train)
  versions = run.get('versions')
  if isinstance(versions, dict):
    versions = ', '.join(f'{name} {v}' for name, v in versions.items())
  facts = {
    'Started': run.get('started'),
    'Time': _text.duration(_text.number(run.get('seconds'))),
    'Steps': _text.show(steps),
    'Skipped steps': _text.show(skipped) if skipped else '',
    'Tokens': _tokens(train, steps, 'tokens'),
    'Target tokens': _tokens(train, steps, 'target_tokens'),
    'Images': _tokens(train, steps, 'images'),
    'Not padding': _text.show(filled and 100 * filled, '{:.1f} %'),
    'Waiting for data': _text.show(
      waiting and 100 * waiting, '{:.2g} % of the time'
    ),
    'Trainable parameters': _text.show(trainable) + share,
    'Frozen parameters': _text.show(frozen),
    'Peak memory': _text.show(memory and memory / 2**30, '{:.2f} GiB'),
    'Devices': run.get('devices'),
    'Adapter': run.get('adapter'),
    'Versions': versions,
  }
  return [(k, str(v)) for k, v in facts.items() if v and v != _text.NONE]


def _data_facts(data: Json) -> list[tuple[str, str]]:
  """The data the run was trained and evaluated on, one line for each task."""
  whole = all(name in data for name in ('task', 'train', 'eval'))
  tasks = data.get('tasks') or ([data] if whole else [])
  batches = {part['task']: part for part in data.get('batches') or ()}
  return [
    (
      'Data',
      f'{task["task"]}: {_examples(task, batches.get(task["task"], {}))}',
    )
    for task in tasks
  ]


def _examples(task: Json, batches: Json) -> str:
  """Counts of a task's examples, and of unusable, too long and shared ones."""
  train, held_out = task['train'], task['eval']
  counts = [
    f'{train["examples"]:,} for training',
    f'{held_out["examples"]:,} for evaluation',
  ]
  if bad := train.get('bad_rows', 0) + held_out.get('bad_rows', 0):
    counts.append(f'{bad:,} rows could not be used')
  if long := batches.get('too_long'):
    done = (
      'truncated' if batches.get('too_long_policy') == 'truncate' else 'dropped'
    )
    counts.append(f'{long:,} too long, {done}')
  if overlap := task.get('overlap'):
    done = 'left out' if task.get('overlap_left_out') else 'not left out'
    counts.append(f'{overlap:,} evaluated ones also stand in train, {done}')
  return ', '.join(counts)


def _tokens(rows: Sequence[Json], steps: float | None, name: str) -> str:
  """The run's number of tokens, from the logged token and step rates."""
  per_step = []
  for row in rows:
    tokens = _text.number(row.get(f'timing/{name}_per_second'))
    rate = _text.number(row.get('timing/steps_per_second'))
    if tokens and rate:
      per_step.append(tokens / rate)
  if not per_step or not steps:
    return _text.NONE
  total = steps * _mean(per_step)
  return f'about {_text.brief(float(f"{total:.2g}"))}'


def _mean(values: Any) -> float | None:
  known = [v for v in map(_text.number, values) if v is not None]
  return sum(known) / len(known) if known else None


class _Files:
  """Reads the files of a run, and collects the problems with them."""

  def __init__(self, folder: Path):
    self._folder = folder
    self.problems: list[str] = []

  def note(self, problem: str) -> None:
    """Records a problem and prints it; '' means that there is none."""
    if problem:
      self.problems.append(problem)
      print(f'report: {problem}', file=sys.stderr)

  def read(self, read: Callable[[Path], Json], name: str) -> Json:
    """The content of a file; an empty dict if it is missing or damaged."""
    try:
      return run_files.if_there(read, self._folder / name) or {}
    except (ValueError, OSError) as error:
      self.note(f'left out, since it cannot be read: {error}')
      return {}

  def pictures(self) -> dict[str, Any]:
    """The pictures drawn at each step, see `picture_files.table`."""
    drawn = []
    for path in picture_files.steps(self._folder):
      try:
        drawn.append(picture_files.read(path))
      except (ValueError, OSError) as error:
        self.note(f'left out, since it cannot be read: {error}')
    return picture_files.table(drawn, self.note)

  def text(self, name: str) -> str:
    """The content of a text file; '' if it is missing or damaged."""
    try:
      return read_text(self._folder / name)
    except FileNotFoundError:
      return ''
    except (ValueError, OSError) as error:
      self.note(f'left out, since it cannot be read: {error}')
      return ''


if __name__ == '__main__':
  writing.print_anything()
  parser = argparse.ArgumentParser(description='Writes the report of a run.')
  parser.add_argument('model_dir', metavar='MODEL_DIR', type=Path)
  print(write_report(parser.parse_args().model_dir))
