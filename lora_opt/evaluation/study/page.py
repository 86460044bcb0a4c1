"""Writes the report of a study: a self-contained HTML file, and PNGs.

python -m lora_opt.main --run_mode=report STUDY
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import markupsafe
import numpy as np

from lora_opt.buckets.paths import as_path, is_bucket
from lora_opt.evaluation import _html, _text, drawing
from lora_opt.evaluation._text import Json
from lora_opt.evaluation.study import drawings, ranking, row_checks, words
from lora_opt.evaluation.study import rows as study_rows
from lora_opt.evaluation.study.drawings import Draw
from lora_opt.evaluation.study.pace import Pace, paces
from lora_opt.evaluation.study.ranking import BASELINE, Group, Ranking

PAGE_FILE = 'report.html'
PICTURES = 'pictures'
_LARGE, _SMALL = (5.0, 2.8), (2.6, 1.9)
_STATE = ('condition_max', 'imbalance_max', 'stable_rank_mean')
_STATE += ('dead_directions_total', 'relative_step_mean')


# Rows of a method, and for each group a cell and its mark.
Table = list[tuple[str, list[tuple[str, str]]]]


class Panel(NamedTuple):
  """One drawing with its title; `mark` is a word beside it."""

  title: str
  svg: str
  mark: str = ''


class Section(NamedTuple):
  """The drawings of one group."""

  title: str
  panels: list[Panel]


def write_study_report(folder: str | Path) -> Path:
  """Writes report.html and pictures/*.png from the runs of a study.

  Args:
    folder: the folder of a sweep by launch/sweep.py, or one with results.jsonl.

  Returns:
    The path of the page.

  Raises:
    FileNotFoundError: there is no such folder, or no run in it has ended.
    OSError: the folder of pictures is a symbolic link.
    ValueError: the folder is in a bucket, or a row of results.jsonl is damaged;
      the message names file, line and field.
  """
  folder = as_path(folder, 'STUDY')
  if is_bucket(folder):
    raise ValueError(f'{folder}: a study is read from a local folder; copy it')
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder}: no such folder; give that of a study')
  if any(folder.glob('[0-9]' * 4)):
    study_rows.collect(folder)
  rows = study_rows.read_rows(folder)
  if not rows:
    raise FileNotFoundError(
      f'{folder}: no run has ended here: there is neither results.jsonl nor a '
      'folder such as 0000 with run.json'
    )
  row_checks.check(rows, folder / study_rows.ROWS_FILE)
  study = study_rows.read_facts(folder)
  ranked = ranking.rank(rows, study.get('rates'))
  pace = paces(ranked.chosen, BASELINE)
  groups = ranking.group_rows(rows)
  names = _file_names(groups)
  style = drawings.styles(sorted(set(ranking.label_methods(rows))))
  pictures = folder / PICTURES
  if pictures.is_symlink():
    raise OSError(f'{pictures} is a link, which is not written to; remove it')
  pictures.mkdir(exist_ok=True)
  return _html.write(
    folder / PAGE_FILE,
    'study.html.jinja',
    title=study.get('title') or folder.resolve().name,
    models=sorted({row['model'] for row in rows if row['model']}),
    ended=len(rows),
    planned=study.get('runs', len(rows)),
    findings=words.sentences(ranked, pace),
    score_name=words.unit(ranked).name,
    lower_is_better=ranked.lower_is_better,
    places=[_place_cells(p, words.unit(ranked)) for p in ranked.places],
    overview=_overview(ranked, pictures),
    table_head=[group.title for group in ranked.chosen],
    table=_by_group(ranked),
    rates=_rates(ranked),
    losses=_losses(ranked),
    incomplete=[group.title for group in ranked.incomplete],
    sweeps=[
      _sweeps(g, found, ranked, pictures / f'sweep_{names[g]}.png')
      for g, found in groups.items()
    ],
    key=[(m, _key(style[m])) for m in style],
    curves=_curves(ranked, style, pictures),
    baseline=BASELINE,
    pace=[_pace_cells(method, found) for method, found in pace.items()],
    state_head=[_text.label(name) for name in _STATE],
    state=_state(ranked),
    pairs=_pairs(ranked, pictures, names),
    halves=ranked.halves,
    facts=_facts(study, rows, ranked),
    folder=str(folder),
  )


def _svg(draw: Draw, size: tuple[float, float], name: str) -> str:
  return markupsafe.Markup(drawing.to_svg(draw, size, name))


def _place_cells(place: ranking.Place, unit: words.Unit) -> dict[str, str]:
  best = place.verdict == 'best'
  return {
    'method': place.method,
    'score': unit.score(place.score.mean),
    'span': unit.span(place.score),
    'behind': '' if best else unit.gap(place.behind.mean),
    'behind_span': '' if best else unit.gap_span(place.behind),
    'verdict': place.verdict,
  }


def _overview(ranked: Ranking, pictures: Path) -> str:
  if not ranked.places:
    return ''
  unit = words.unit(ranked)
  draw = drawings.scores(ranked.places, unit)
  size = (5.0, 0.5 + 0.27 * len(ranked.places))
  drawing.to_png({f'Mean {unit.name}': draw}, size, pictures / 'ranking.png')
  return _svg(draw, size, 'mean scores')


def _by_group(ranked: Ranking) -> Table:
  """The scores, each marked by how it compares in its group."""
  unit = words.unit(ranked)
  standing = {
    group: ranking.best_in_group(found)
    for group, found in ranked.chosen.items()
  }
  table = []
  for place in ranked.places:
    cells = []
    for group, (best, behind) in standing.items():
      chosen = ranked.chosen[group][place.method]
      low = behind[place.method].low
      if place.method == best:
        kind = 'best'
      else:
        kind = 'behind' if low is not None and low > 0 else ''
      cells.append((unit.score(float(np.mean(chosen.scores))), kind))
    table.append((place.method, cells))
  return table


def _rates(ranked: Ranking) -> Table:
  """The chosen learning rates, marked if at an edge of those tried."""
  return [
    (
      place.method,
      [
        (
          _text.brief(found[place.method].learning_rate),
          'edge' if found[place.method].at_edge else '',
        )
        for found in ranked.chosen.values()
      ],
    )
    for place in ranked.places
  ]


def _losses(ranked: Ranking) -> Table:
  """Mean losses at the chosen rates; the lowest of each group is marked."""
  table = [(place.method, []) for place in ranked.places]
  for found in ranked.chosen.values():
    means = {
      method: float(np.mean([row.get('loss', np.nan) for row in chosen.rows]))
      for method, chosen in found.items()
    }
    least = min(means.values())
    for method, cells in table:
      form = '{:.4f}' if ranked.lower_is_better else '{:.3f}'
      text = _text.show(_text.number(means[method]), form)
      cells.append((text, 'best' if means[method] == least else ''))
  return table


def _sweeps(
  group: Group,
  found: Mapping[str, Sequence[Json]],
  ranked: Ranking,
  picture: Path,
) -> Section:
  """Score against learning rate, with a panel for each method."""
  chosen, unit = ranked.chosen.get(group, {}), words.unit(ranked)
  scores = [
    unit.natural(ranking.score(row, 1))
    for rows in found.values()
    for row in rows
    if 'score' in row
  ]
  low, high = min(scores, default=0), max(scores, default=1)
  room = 0.06 * (high - low) or 0.01
  level = None
  if BASELINE in chosen:
    level = unit.natural(float(np.mean(chosen[BASELINE].scores)))
  draws = {
    method: drawings.sweep(
      rows, chosen.get(method), level, (low - room, high + room), unit
    )
    for method, rows in sorted(found.items())
  }
  drawing.to_png(draws, _SMALL, picture, columns=4)
  panels = [
    Panel(m, _svg(draw, _SMALL, f'{group.title}, {m}'))
    for m, draw in draws.items()
  ]
  return Section(group.title, panels)


def _curves(
  ranked: Ranking, style: Mapping[str, Mapping], pictures: Path
) -> list[Panel]:
  draws = {
    group.title: drawings.losses(found, style)
    for group, found in ranked.chosen.items()
  }
  if draws:
    drawing.to_png(draws, _LARGE, pictures / 'loss.png', columns=2)
  return [
    Panel(title, _svg(draw, _LARGE, f'loss, {title}'))
    for title, draw in draws.items()
  ]


def _key(style: Mapping[str, object]) -> markupsafe.Markup:
  """A key entry: a short stroke in a method's colour and dashes."""
  dashes = style['linestyle']
  pattern = '' if dashes == '-' else ' '.join(str(3 * x) for x in dashes[1])
  return markupsafe.Markup(
    '<svg class="stroke" viewBox="0 0 30 6" aria-hidden="true"><path '
    'd="M0 3H30" stroke="{}" stroke-width="3" stroke-dasharray="{}"/></svg>'
  ).format(style['color'], pattern)


def _pace_cells(method: str, found: Pace) -> tuple[str, ...]:
  return (
    method,
    _text.show(found.steps, '{:.2f}'),
    f'{found.reached} of {found.runs}',
    _text.show(found.step_seconds, '{:.2f}'),
    _text.show(found.memory, '{:.2f}'),
  )


def _state(ranked: Ranking) -> list[tuple[str, ...]]:
  """For each method, medians over its runs of the last state of the factors."""
  table = []
  for place in ranked.places:
    cells = []
    for name in _STATE:
      values = [
        row['diagnostics'][name]
        for found in ranked.chosen.values()
        for row in found[place.method].rows
        if name in row.get('diagnostics', ())
      ]
      middle = statistics.median(values) if values else None
      cells.append(_text.NONE if middle is None else _text.brief(middle))
    table.append((place.method, *cells))
  return table


def _pairs(
  ranked: Ranking, pictures: Path, names: Mapping[Group, str]
) -> list[Section]:
  """Stable rank of each pair, by method, averaged over the seeds of a group."""
  sections = []
  for group, found in ranked.chosen.items():
    tables = {
      method: _mean_table([row['pairs'] for row in chosen.rows])
      for method, chosen in found.items()
      if all(row.get('pairs') for row in chosen.rows)
    }
    values = [
      x for t in tables.values() for layers in t.values() for x in layers
    ]
    if not values:
      continue
    limits = (min(values), max(values))
    draws = {m: drawings.pairs(t, limits) for m, t in sorted(tables.items())}
    path = pictures / f'pairs_{names[group]}.png'
    drawing.to_png(draws, _SMALL, path, columns=4)
    title = f'{group.title}: from {limits[0]:.1f} to {limits[1]:.1f}'
    panels = [
      Panel(m, _svg(draw, _SMALL, f'pairs, {group.title}, {m}'))
      for m, draw in draws.items()
    ]
    sections.append(Section(title, panels))
  return sections


def _mean_table(tables: Sequence[Json]) -> dict[str, list[float]]:
  """Stable ranks by site, averaged over runs."""
  ranks = [table['stable_rank'] for table in tables]
  return {
    site: np.mean([t[site] for t in ranks], axis=0).tolist()
    for site in ranks[0]
  }


def _facts(
  study: Json, rows: Sequence[Json], ranked: Ranking
) -> list[tuple[str, str]]:
  """Names and values of facts about all runs."""
  facts = []
  for group, found in ranked.chosen.items():
    row = next(iter(found.values())).rows[0]
    budget = ', '.join(f'{k}={v}' for k, v in row['budget'].items())
    seeds = ', '.join(map(str, ranked.seeds[group]))
    facts.append(
      (
        group.title,
        f'{row["metric"]} of {row["num_examples"]:,} examples; seeds {seeds}; '
        f'{budget}',
      )
    )
  diverged = sum('score' not in row for row in rows)
  total = sum(row.get('seconds', 0) for row in rows)
  return [
    *facts,
    ('Diverged', f'{diverged} runs'),
    ('Time of all runs', _text.duration(total)),
    *(('Versions', text) for text in study.get('versions', ())),
  ]


def _file_names(groups: Iterable[Group]) -> dict[Group, str]:
  """Names for the picture files of each group, from the words of its title.

  >>> list(_file_names([Group('a b', 4), Group('a/b', 4)]).values())
  ['a_b_rank_4', 'a_b_rank_4_2']
  """
  names: dict[Group, str] = {}
  for group in groups:
    words = '_'.join(re.findall(r'[\w.-]+', group.title, re.ASCII))[:80]
    name, number = words, 2
    while name in names.values():
      name, number = f'{words}_{number}', number + 1
    names[group] = name
  return names
