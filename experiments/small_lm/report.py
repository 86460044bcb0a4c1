"""Tables and pictures of `run.py`, from the committed results."""

import pathlib
from collections.abc import Callable

import numpy as np
from matplotlib import figure

from experiments import drawing, results, sweeps
from experiments.small_lm import measures, pictures, plan
from experiments.small_lm.run import FOLDER, OTHER_WEIGHTS

CAPTIONS = {
  'sweeps': 'Loss against the learning rate; grey: within 0.02 of the best; '
  'dotted: the best of adamw; red: all seeds; losses 0.3 above it are cut off',
  'variants': 'The same for the variants',
  'steps': 'Loss against steps at the best constant rates; dotted curves: the '
  'average of the factors',
  'transfer': 'Loss against the learning rate for ranks, alphas, widths, steps',
}
NAMES = {'gsm8k': 'GSM8K', 'super_ni': 'Super-NI', 'python': 'Python'}


def load(
  folder: pathlib.Path, name: str = 'results.jsonl'
) -> dict[plan.Setting, plan.Runs]:
  """All runs by setting; none before the first."""
  file = folder / name
  return plan.found_of(results.load_rows(file) if file.exists() else [])


def done(found, seeds_at_least: int = 2) -> dict[plan.Setting, plan.Runs]:
  """Settings that can be compared: swept to an inner best, several seeds."""
  return {
    setting: runs
    for setting, runs in found.items()
    if setting.method != 'none'
    and measures.bracketed(runs)
    and len(measures.best(runs)) >= seeds_at_least
  }


def groups(found) -> dict[plan.Setting, dict[str, plan.Runs]]:
  """Methods by all else, under AdamW's name, where AdamW is among them.

  Full fine-tuning stands with rank 8.
  """
  out: dict[plan.Setting, dict[str, plan.Runs]] = {}
  for setting, runs in found.items():
    place = setting._replace(method='adamw')
    if setting.method in plan.FULL:
      place = place._replace(rank=8, alpha=16.0)
    out.setdefault(place, {})[setting.method] = runs
  return {place: of for place, of in out.items() if 'adamw' in of}


def label(setting: plan.Setting) -> str:
  """What differs from the first setting.

  >>> label(plan.Setting('adamw', rank=2, alpha=4.0, steps=100))
  'GSM8K, rank 2, 100 steps, cosine'
  """
  parts = [NAMES[setting.domain], f'rank {setting.rank}']
  if setting.alpha != 2 * setting.rank:
    parts.append(f'alpha {setting.alpha:g}')
  if setting.batch != 8:
    parts.append(f'batch {setting.batch}')
  if setting.width != 128:
    parts.append(f'width {setting.width}')
  return ', '.join([*parts, f'{setting.steps} steps', setting.schedule])


def signed(interval: sweeps.Interval, digits: int = 4) -> str:
  """A difference with its interval, bold where zero is outside.

  >>> signed(sweeps.Interval(-0.0123, -0.02, -0.004))
  '**-0.0123** [-0.0200, -0.0040]'
  """
  if not np.isfinite(interval.middle):
    return 'diverges'
  middle, low, high = (f'{x:+.{digits}f}' for x in interval)
  if interval.low > 0 or interval.high < 0:
    middle = f'**{middle}**'
  return f'{middle} [{low}, {high}]'


def octaves(runs) -> str:
  """Width of the good range; a mark where the sweep ends in it."""
  width, whole = measures.good_range(runs)
  return f'{width:.1f}' if whole else f'at least {width:.1f}'


def table_of(methods, before) -> str:
  """A line a method, the best first."""
  baseline = methods['adamw']

  def mean_loss(name):
    return np.mean([r['loss'] for r in measures.best(methods[name]).values()])

  lines = []
  for name in sorted(methods, key=mean_loss):
    runs = methods[name]
    own = measures.best(runs)
    loss = sweeps.mean([row['loss'] for row in own.values()])
    kept = sweeps.mean([row['kept'] for row in own.values()])
    change = measures.paired(runs, baseline)
    rate = next(iter(own.values()))['rate']
    lines.append(
      (
        name,
        sweeps.short(rate),
        f'{loss.middle:.4f} [{loss.low:.4f}, {loss.high:.4f}]',
        '' if name == 'adamw' else signed(change),
        octaves(runs),
        f'{kept.middle - before["kept"]:+.3f}',
        len(own),
      )
    )
  header = (
    'method', 'best rate', 'loss', 'against adamw', 'good range, octaves',
    'pretraining text', 'seeds',
  )  # fmt: skip
  return results.markdown(header, lines)


def differences(methods) -> list[str]:
  """AdamW's loss, and the differences from it of the first methods."""
  own = measures.best(methods['adamw'])
  loss = sweeps.mean([row['loss'] for row in own.values()])
  return [
    f'{loss.middle:.4f}',
    *(
      signed(measures.paired(methods[name], methods['adamw']))
      if name in methods
      else ''
      for name in plan.CORE[1:]
    ),
  ]


def across(of_groups) -> str:
  """A line a setting, a column a method: the difference from AdamW."""
  lines = [
    (label(place), *differences(methods))
    for place, methods in of_groups.items()
    if len(methods.keys() & set(plan.CORE)) > 1
  ]
  return results.markdown(('setting', *plan.CORE), lines)


def replicated(of_groups, others) -> str:
  """What two pretrainings agree on: `differences` of both."""
  lines = [
    (label(place), weights, *differences(groups_of[place]))
    for place in others
    if place in of_groups
    for weights, groups_of in (('these', of_groups), ('others', others))
  ]
  return results.markdown(('setting', 'weights', *plan.CORE), lines)


def steps_text(interval: sweeps.Interval) -> str:
  if not np.isfinite(interval.middle):
    return 'not in every seed'
  text = f'{interval.middle:.2f} [{interval.low:.2f}, {interval.high:.2f}]'
  clear = interval.low > 1 or interval.high < 1
  return f'**{text}**' if clear else text


def steps(of_groups) -> str:
  """A line a setting with a constant rate: steps over those of AdamW."""
  names, lines = (*plan.CORE[1:], *plan.AVERAGED), []
  for place, methods in of_groups.items():
    if place.schedule != 'constant' or len(methods) < 2:
      continue
    lines.append(
      (
        label(place),
        *(
          steps_text(
            measures.steps_ratio(place, methods[name], methods['adamw'])
          )
          if name in methods
          else ''
          for name in names
        ),
      )
    )
  return results.markdown(('setting', *names), lines)


def rates(of_groups) -> str:
  """A line a setting: best rates, and what the first setting's rate costs."""
  first = of_groups.get(plan.Setting('adamw'), {})
  lines = []
  for place, methods in of_groups.items():
    cells = []
    for name in plan.CORE:
      if name not in methods:
        cells.append('')
        continue
      power = plan.best_power(plan.swept(methods[name]))
      text = sweeps.short(plan.rate_of(power))
      if name in first and methods is not first:
        usual = plan.best_power(plan.swept(first[name]))
        cost = measures.cost_of_rate(methods[name], usual)
        text += ' (' + ('not run' if cost is None else f'{cost:+.3f}') + ')'
      cells.append(text)
    if any(cells):
      lines.append((label(place), *cells))
  return results.markdown(('setting', *plan.CORE), lines)


def averages(of_groups) -> str:
  """A line a setting: averages at a constant rate, less recipes with a cosine.

  Each at its own best rate.
  """
  lines = []
  for place, methods in of_groups.items():
    cosine = of_groups.get(place._replace(schedule='cosine'), {})
    if (
      place.schedule != 'constant' or not plan.AVERAGED.keys() <= methods.keys()
    ):
      continue
    ours, adamw = methods['averaged(recommended)'], methods['averaged(adamw)']
    pairs = (
      *(
        (methods[name], cosine[recipe])
        for name, recipe in plan.AVERAGED.items()
      ),
      (ours, cosine['adamw']),
      (ours, adamw),
    )
    lines.append((label(place), *(signed(measures.paired(*p)) for p in pairs)))
  header = (
    'setting', 'averaged(adamw) less adamw',
    'averaged(recommended) less recommended',
    'averaged(recommended) less adamw',
    'averaged(recommended) less averaged(adamw)',
  )  # fmt: skip
  return results.markdown(header, lines)


def variants(of_groups) -> str:
  """A line a variant: the differences from its recipe, and its best rates.

  The columns are the settings with variants other than plan.EVERYWHERE.
  """
  known = {
    place: [name for name in plan.VARIANTS if name in methods]
    for place, methods in of_groups.items()
  }
  places = [p for p, names in known.items() if {*names} - {*plan.EVERYWHERE}]

  def cell(name, place):
    methods, recipe = of_groups[place], name.partition(',')[0]
    if name not in methods or recipe not in methods:
      return ''
    rate = next(iter(measures.best(methods[name]).values()))['rate']
    change = signed(measures.paired(methods[name], methods[recipe]))
    return f'{change} at {sweeps.short(rate)}'

  lines = [
    (name, *(cell(name, place) for place in places))
    for name in plan.VARIANTS
    if any(name in known[place] for place in places)
  ]
  return results.markdown(('variant', *map(label, places)), lines)


def state(found) -> str:
  """How far the study is, and what it stands on."""
  cells = plan.cells()
  whole = sum(measures.finished(c, found.get(c.setting, {})) for c in cells)
  rows = [row for runs in found.values() for row in runs.values()]
  before = {
    (setting.width, setting.domain): runs[0, 0]
    for setting, runs in found.items()
    if setting.method == 'none'
  }

  def diverged(row):
    start = before.get((row['width'], row['domain']), {'loss': np.inf})
    return not row['loss'] <= start['loss']

  lines = [
    f'{whole} of {len(cells)} cells are finished, with {len(rows)} runs, of '
    f'which {sum(map(diverged, rows))} diverged: they ended above the loss '
    'before fine-tuning, or at none that is finite.'
  ]
  for field, what in (('base', 'width'), ('text', 'domain')):
    pairs = {(row[what], row[field]) for row in rows}
    for value in sorted({v for v, _ in pairs}, key=str):
      of = sorted(d for v, d in pairs if v == value)
      text = f'{what} {value}: {field} {", ".join(of)}.'
      if len(of) > 1:
        text = f'**{text} Runs of different {field} are compared here.**'
      lines.append(text)
  for (width, domain), row in before.items():
    lines.append(
      f'Before fine-tuning, width {width}: {NAMES[domain]} {row["loss"]:.4f}, '
      f'pretraining text {row["kept"]:.4f} nats a token.'
    )
  return '\n'.join(f'- {line}' for line in lines)


def sections(folder):
  found = load(folder)
  of_groups = groups(done(found))
  out = {'state': state(found)}
  place = plan.Setting('adamw')
  before = next(
    iter(runs for s, runs in found.items() if s.method == 'none'), None
  )
  out['first'] = (
    table_of(of_groups[place], before[0, 0]) if place in of_groups else ''
  )
  out['across'], out['steps'] = across(of_groups), steps(of_groups)
  out['averages'] = averages(of_groups)
  others = groups(done(load(folder, OTHER_WEIGHTS.name)))
  out['replicated'] = replicated(of_groups, others)
  out['rates'], out['variants'] = rates(of_groups), variants(of_groups)
  out['pictures'] = '\n\n'.join(
    f'![{CAPTIONS[name]}]({name}.png)' for name in drawings(of_groups)
  )
  return out


def drawings(of_groups) -> dict[str, Callable[[], figure.Figure]]:
  """The pictures for which there are runs, by name."""
  place = plan.Setting('adamw')
  constant = place._replace(schedule='constant')
  out = {}
  if place in of_groups:
    of = of_groups[place]
    own = {n: of[n] for n in ('adamw', *plan.VARIANTS) if n in of}
    whole = {n: runs for n, runs in of.items() if n not in plan.VARIANTS}
    out['sweeps'] = lambda: pictures.sweeps_of(whole)
    if len(own) > 1:
      out['variants'] = lambda: pictures.sweeps_of(own)
  if constant in of_groups:
    out['steps'] = lambda: pictures.curves(constant, of_groups[constant])
  axes = {what: values for what, values in varied(of_groups).items() if values}
  if axes:
    out['transfer'] = lambda: pictures.transfer(axes)
  return out


def varied(of_groups) -> dict[str, dict[float, dict[str, plan.Runs]]]:
  """Settings that differ from the first in one thing: {what: {value: methods}}.

  Of values that stand alone there are none.
  """
  place = plan.Setting('adamw')
  places = {
    'rank': {r: place._replace(rank=r, alpha=2.0 * r) for r in (2, 8, 32)},
    'alpha': {a: place._replace(alpha=a) for a in (4.0, 16.0, 64.0)},
    'width': {w: place._replace(width=w) for w in (64, 128)},
    'steps': {n: place._replace(steps=n) for n in (100, 300, 1000)},
  }
  out = {}
  for what, settings in places.items():
    known = {v: of_groups[p] for v, p in settings.items() if p in of_groups}
    out[what] = known if len(known) > 1 else {}
  return out


def draw(folder):
  for name, made in drawings(groups(done(load(folder)))).items():
    drawing.save(made(), folder / f'{name}.png')


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
