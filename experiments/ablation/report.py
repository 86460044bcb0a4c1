"""Makes the tables and plots of `run.py` from the committed results."""

import numpy as np

from experiments import drawing, results, sweeps
from experiments.ablation.problems import PROBLEMS
from experiments.ablation.run import FOLDER
from experiments.ablation.variants import FAMILIES

# Short names for files and sections.
SHORT = {'LoRA-RITE': 'lora_rite', 'RefLoRA': 'reflora'}


def pick(rows, family, problem):
  return {
    r['variant']: r
    for r in rows
    if (r['family'], r['problem']) == (family, problem)
  }


def ratio(row, base) -> sweeps.Interval:
  """Ratio of the loss to the default's, per seed, each at its best rate."""
  own = sweeps.best_rate(row['rates'], row['losses'])
  other = sweeps.best_rate(base['rates'], base['losses'])
  return sweeps.geometric_mean(
    row['losses'][own.index] / base['losses'][other.index]
  )


def table(rows, family) -> str:
  """One row per variant, three columns per problem."""
  header, lines = ['variant'], {}
  for problem in PROBLEMS:
    found = pick(rows, family, problem)
    if not found:
      continue
    header += [f'{problem}: loss / default', 'best rate', 'octaves']
    base = next(iter(found.values()))
    for name, row in found.items():
      best = sweeps.best_rate(row['rates'], row['losses'])
      change = ratio(row, base)
      text = change.text()
      if change.low > 1 or change.high < 1:
        text = f'**{text}**'
      if row is base:
        text = f'loss {best.loss.text()}'
      lines.setdefault(name, [name]).extend(
        [text, best.rate_text(), f'{best.octaves:.1f}']
      )
  return results.markdown(header, lines.values())


def draw_ratios(rows, family, path):
  """Plots the ratio of each loss to the default's, with intervals."""
  problems = [p for p in PROBLEMS if pick(rows, family, p)]
  count = len(FAMILIES[family])
  canvas, axes = drawing.panels(
    1, len(problems), 3.1, 0.8 + 0.22 * count, sharey=True
  )
  for panel, problem in zip(axes[0], problems, strict=True):
    found = pick(rows, family, problem)
    base = next(iter(found.values()))
    for y, row in enumerate(found.values()):
      change = ratio(row, base)
      if not np.isfinite(change.middle):
        panel.text(1, y, ' diverges', va='center', fontsize=7)
        continue
      clear = change.low > 1 or change.high < 1
      colour = drawing.COLOURS[0] if clear else drawing.GREY
      panel.plot([change.low, change.high], [y, y], color=colour)
      panel.plot(change.middle, y, marker='o', markersize=4, color=colour)
    panel.axvline(1, color='#555', linewidth=0.8)
    panel.set_yticks(range(len(found)), list(found))
    panel.set(xscale='log', title=problem)
    panel.set_xlabel('loss / that of the default', fontsize=8)
  axes[0, 0].invert_yaxis()
  drawing.save(canvas, path)


def draw_sweeps(rows, family, path):
  """Plots loss against learning rate: each variant, and the default in grey."""
  problems = [p for p in PROBLEMS if pick(rows, family, p)]
  names = list(pick(rows, family, problems[0]))
  columns = 6
  lines = -(-len(names) // columns)
  canvas, axes = drawing.panels(lines, columns, 2.1, 1.8, sharey=True)
  for panel in axes.flat[len(names) :]:
    panel.set_visible(False)
  for panel, name in zip(axes.flat, names, strict=False):
    for problem, colour in zip(problems, drawing.COLOURS, strict=False):
      found = pick(rows, family, problem)
      base, row = found[names[0]], found[name]
      for r, options in (
        (base, {'color': drawing.GREY, 'linewidth': 0.8}),
        (row, {'color': colour, 'linewidth': 1.4}),
      ):
        # Relative to the first rate of its sweep, so that units do not matter.
        rates = r['rates'] / r['rates'][0] * base['rates'][0]
        middle = [sweeps.geometric_mean(x).middle for x in r['losses']]
        panel.plot(rates, np.minimum(middle, 30), **options)
      losses = np.minimum(row['losses'], 30)
      panel.fill_between(base['rates'], losses.min(1), losses.max(1),
                         color=colour, alpha=0.2, linewidth=0)  # fmt: skip
      if panel is axes.flat[0]:
        panel.plot([], [], color=colour, label=problem)
    panel.set(xscale='log', yscale='log', ylim=(1e-6, 10))
    panel.set_title(name, fontsize=7)
  axes.flat[0].legend(fontsize=6, frameon=False)
  drawing.save(canvas, path)


def sections(folder):
  rows = results.load_rows(folder / 'results.jsonl')
  return {short: table(rows, family) for family, short in SHORT.items()}


def draw(folder):
  rows = results.load_rows(folder / 'results.jsonl')
  for family, short in SHORT.items():
    draw_ratios(rows, family, folder / f'{short}.png')
    draw_sweeps(rows, family, folder / f'{short}_sweeps.png')


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
