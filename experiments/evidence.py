"""One table of all methods and all studies, in docs/evidence.md.

    python -m experiments.evidence

makes it from the committed results of the studies.
"""

import argparse
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments import results
from experiments.small_lm import measures, plan
from experiments.small_lm import report as small_lm
from lora_opt.evaluation.study import ranking
from lora_opt.evaluation.study import rows as study_rows

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER.parent / 'docs' / 'evidence.md'
METHODS = {
  'recommended': '`recommended`',
  'averaged(recommended)': '`averaged(recommended)`',
  'averaged(adamw)': '`averaged(adamw)`',
  'polora': '`polora`',
  'lora_muon': '`lora_muon`',
  'lora_plus': '`lora_plus`',
  'lora_rite': '`lora_rite`',
  'reflora': '`reflora`',
  'reflora_s': '`reflora_s`',
  'full adamw': 'AdamW on all weights',
  'full muon': 'Muon on all weights',
}


class Study(NamedTuple):
  """Runs of the main job, made by study.py."""

  folder: str
  title: str
  field: str  # 'score', which may be a loss too, or the 'loss' of all examples
  points: bool  # whether it is a share, to be shown in points
  # Only of these, as losses of different tasks have different units.
  task: str | None = None


STUDIES = (
  Study('smollm2', 'SmolLM2, points', 'score', points=True),
  *(
    Study(f'finalists/{folder}', f'{title}, loss', 'score', False, task)
    for folder, task, title in (
      ('smollm2', 'gsm8k', 'SmolLM2, GSM8K'),
      ('minilm', 'stsb', 'MiniLM, STS-B'),
      ('minilm', 'sst2', 'MiniLM, SST-2'),
    )
  ),
  Study('glue', 'MiniLM, points', 'score', points=True),
  Study('image_classification', 'ViT, points', 'score', points=True),
  Study('dreambooth', 'DreamBooth, loss', 'loss', points=False),
)


def compared(study: Study) -> dict[str, ranking.Interval]:
  """How much more the study's field is than AdamW's, by method.

  Each at the rate that was chosen for it, paired by task, rank and seed. Scores
  are of the examples that did not choose the rate.
  """
  folder = FOLDER / study.folder
  facts = study_rows.read_facts(folder)
  rows = [
    row
    for row in study_rows.read_rows(folder)
    if study.task in (None, row['task'])
  ]
  ranked = ranking.rank(rows, facts.get('rates'))

  def values(method):
    found = [methods[method] for methods in ranked.chosen.values()]
    if study.field == 'score':
      # Losses are ranked by their negatives.
      unit = 100 if study.points else -1
      return [[unit * x for x in chosen.scores] for chosen in found]
    return [[row[study.field] for row in chosen.rows] for chosen in found]

  return {
    place.method: ranking.difference(
      values(place.method), values(ranking.BASELINE)
    )
    for place in ranked.places
    if place.method != ranking.BASELINE
  }


def small_lm_columns(of_groups: Mapping) -> dict[str, Callable[[str], str]]:
  """Columns of the small language model, each a function of the method."""
  cosine = plan.Setting('adamw')
  constant = cosine._replace(schedule='constant')

  def loss(place):
    methods = of_groups.get(place, {})
    return lambda name: (
      small_lm.signed(measures.paired(methods[name], methods['adamw']))
      if name in methods
      else ''
    )

  def steps(name):
    methods = of_groups.get(constant, {})
    if name not in methods:
      return ''
    return small_lm.steps_text(
      measures.steps_ratio(constant, methods[name], methods['adamw'])
    )

  return {
    'small LM, loss, cosine': loss(cosine),
    'loss, constant rate': loss(constant),
    'steps, constant rate': steps,
  }


def text(found: ranking.Interval, digits: int) -> str:
  """A difference, bold where its interval does not contain zero.

  >>> text(ranking.Interval(-2.06, -3.95, -0.16), 1)
  '**-2.1** [-4.0, -0.2]'
  """
  middle = f'{found.mean:+.{digits}f}'
  if found.low is None or found.high is None:
    return middle
  if found.low > 0 or found.high < 0:
    middle = f'**{middle}**'
  return f'{middle} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]'


def table() -> str:
  """A line a method: differences from AdamW, with intervals over seeds."""
  of_groups = small_lm.groups(small_lm.done(small_lm.load(FOLDER / 'small_lm')))
  columns = small_lm_columns(of_groups)
  for study in STUDIES:
    found = compared(study)
    digits = 1 if study.points else 4
    columns[study.title] = lambda method, found=found, digits=digits: (
      text(found[method], digits) if method in found else ''
    )
  lines = [
    (title, *(column(method) for column in columns.values()))
    for method, title in METHODS.items()
  ]
  return results.markdown(('against AdamW', *columns), lines)


def main(argv=None):
  argparse.ArgumentParser(description=__doc__.partition('\n')[0]).parse_args(
    argv
  )
  page = PAGE.read_text(encoding='utf-8')
  PAGE.write_text(results.with_section(page, 'all', table()), encoding='utf-8')


if __name__ == '__main__':
  main()
