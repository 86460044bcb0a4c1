"""Makes the tables and plots of `run.py` from the committed results."""

import collections

import numpy as np

from experiments import drawing, results, sweeps
from experiments.learning_rate_transfer.run import AXES, FOLDER

# Colours from the smallest to the largest value on an axis.
SHADES = ('#9ecae1', '#4292c6', '#2171b5', '#08306b')


PICTURES = ('steady.png', 'between.png', 'drifting.png')


def pick(rows, method, axis):
  return [r for r in rows if (r['method'], r['axis']) == (method, axis)]


def all_of(rows, field):
  """All values of a field (methods or axes), in the order of the rows."""
  return list(dict.fromkeys(r[field] for r in rows))


def best_of_seeds(row) -> np.ndarray:
  """Each seed's best rate."""
  return row['rates'][np.argmin(row['losses'], axis=0)]


def cost_of_keeping(lines) -> float:
  """The largest ratio of loss to best loss if the first best rate is kept."""
  kept = sweeps.best_rate(lines[0]['rates'], lines[0]['losses']).index
  best = [sweeps.best_rate(r['rates'], r['losses']) for r in lines]
  return max(
    sweeps.geometric_mean(r['losses'][kept]).middle / b.loss.middle
    for r, b in zip(lines, best, strict=True)
  )


def chosen_rates(row) -> sweeps.Interval:
  """The geometric mean of the seeds' best rates, with their range."""
  rates = best_of_seeds(row)
  middle = float(np.exp(np.mean(np.log(rates))))
  return sweeps.Interval(middle, rates.min(), rates.max())


def edge(row) -> str:
  """A mark if a seed's best rate is at an end of the sweep, otherwise ''."""
  ends = {row['rates'][0], row['rates'][-1]}
  return ' (edge)' if ends & set(best_of_seeds(row)) else ''


def drift(lines) -> float:
  """The ratio of the largest best rate to the smallest."""
  middles = [chosen_rates(row).middle for row in lines]
  return max(middles) / min(middles)


def drift_text(lines) -> str:
  cost = cost_of_keeping(lines)
  said = f'{sweeps.short(cost)} times' if np.isfinite(cost) else 'diverges'
  return f'{drift(lines):.1f}; {said}'


def steadiest_first(rows) -> list[str]:
  """The methods, ordered by the largest drift of their rate on any axis."""
  axes = all_of(rows, 'axis')
  return sorted(
    all_of(rows, 'method'),
    key=lambda method: max(drift(pick(rows, method, axis)) for axis in axes),
  )


def summary(rows) -> str:
  """A table with one row per method."""
  axes = all_of(rows, 'axis')
  return results.markdown(
    ('method', *axes),
    [
      (method, *(drift_text(pick(rows, method, axis)) for axis in axes))
      for method in steadiest_first(rows)
    ],
  )


def table(rows) -> str:
  """A table of all best rates."""
  out = []
  for method in all_of(rows, 'method'):
    for axis in all_of(rows, 'axis'):
      rates = (
        f'{row["value"]}: {chosen_rates(row).text()}{edge(row)}'
        for row in pick(rows, method, axis)
      )
      out.append((method, axis, ', '.join(rates)))
  header = ('method', 'varied', 'best learning rate [over seeds]')
  return results.markdown(header, out)


def load(folder) -> list[dict]:
  """Rows of the methods that were run on every axis."""
  rows = results.load_rows(folder / 'results.jsonl')
  whole = sum(map(len, AXES.values()))
  count = collections.Counter(row['method'] for row in rows)
  return [row for row in rows if count[row['method']] == whole]


def sections(folder):
  rows = load(folder)
  return {'drift': summary(rows), 'rates': table(rows)}


def draw(folder):
  """Draws three plots, from the steadiest method to the least steady."""
  rows = load(folder)
  methods = steadiest_first(rows)
  size = -(-len(methods) // len(PICTURES))
  for number, name in enumerate(PICTURES):
    part = methods[number * size : (number + 1) * size]
    draw_sweeps(rows, part, folder / name)


def draw_sweeps(rows, methods, path):
  """Plots final loss against the learning rate, one line per value."""
  axes = all_of(rows, 'axis')
  canvas, panels = drawing.panels(
    len(methods), len(axes), 3.6, 2.6, sharey=True
  )
  for method, line in zip(methods, panels, strict=True):
    for axis, panel in zip(axes, line, strict=True):
      for row, shade in zip(pick(rows, method, axis), SHADES, strict=True):
        middle = [sweeps.geometric_mean(x).middle for x in row['losses']]
        panel.plot(row['rates'], middle, color=shade, label=row['value'])
        best = sweeps.best_rate(row['rates'], row['losses'])
        panel.plot(best.rate, best.loss.middle, 'o', color=shade, markersize=5)
      panel.set(xscale='log', yscale='log', ylim=(1e-4, 3))
      panel.set_title(f'{method}: {axis}', fontsize=9)
      panel.legend(fontsize=7, frameon=False)
    line[0].set_ylabel('final loss / first loss', fontsize=8)
  for panel in panels[-1]:
    panel.set_xlabel('learning rate', fontsize=8)
  drawing.save(canvas, path)


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
