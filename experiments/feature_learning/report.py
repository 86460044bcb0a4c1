"""Makes the tables and plots of `run.py` from the committed results."""

import numpy as np
from matplotlib import colors
from scipy import stats

from experiments import drawing, results, sweeps
from experiments.feature_learning.run import FOLDER, POLICIES

TERMS = ('A moves', 'B moves', 'both move')
# Expected powers of the width in the first steps, counted as in the paper: a
# step of Adam has the size of its rate in every element, and is aligned with z.
# With Init[2], A is as large as a few of its steps, and B is of size one.
EXPECTED = {
  'Init[1]': {
    'equal, constant': ('1', '0', '1'),
    'equal, n^-1/2': ('0', '-1/2', '0'),
    'equal, 1/n': ('-1', '-1', '-1'),
    'LoRA+, A 1/n, B constant': ('0', '0', '0'),
  },
  'Init[2]': {
    'equal, constant': ('1', '1', '1'),
    'equal, n^-1/2': ('1/2', '0', '0'),
    'equal, 1/n': ('0', '-1', '-1'),
    'LoRA+, A 1/n, B constant': ('0', '0', '0'),
  },
}


def mean_interval(values) -> sweeps.Interval:
  """The mean over seeds, with a 95 % interval by Student's t."""
  middle, count = np.mean(values), len(values)
  error = np.std(values, ddof=1) / np.sqrt(count) if count > 1 else 0.0
  half = stats.t.ppf(0.975, max(count - 1, 1)) * error
  return sweeps.Interval(middle, middle - half, middle + half)


def powers(rows, when) -> list[sweeps.Interval]:
  """Powers of the width, fitted to the sizes of each of the three terms."""
  logs = np.log([r['width'] for r in rows])
  sizes = np.log([r[when] for r in rows])  # (widths, seeds, 3)
  return [
    mean_interval([np.polyfit(logs, y, 1)[0] for y in sizes[:, :, t].T])
    for t in range(3)
  ]


def scaling_table(rows) -> str:
  lines = []
  for start in dict.fromkeys(r['start'] for r in rows):
    for policy in POLICIES:
      chosen = pick(rows, start, policy)
      cells = []
      for expected, early, all_steps in zip(
        EXPECTED[start][policy],
        powers(chosen, 'early'),
        powers(chosen, 'terms'),
        strict=True,
      ):
        cells.append(f'{expected}: {early.text()}; {all_steps.middle:.2f}')
      ends = [
        sweeps.geometric_mean(r['losses']).middle
        for r in (chosen[0], chosen[-1])
      ]
      cells.append(' to '.join(f'{x:.2g}' for x in ends))
      lines.append([start, policy, *cells])
  widths = [r['width'] for r in rows]
  header = ['start', 'rates', *(f'{t}, expected: early; all' for t in TERMS),
            f'loss, width {min(widths)} to {max(widths)}']  # fmt: skip
  return results.markdown(header, lines)


def pick(rows, start, policy):
  return [r for r in rows if (r['start'], r['policy']) == (start, policy)]


def heat_table(rows) -> str:
  lines = []
  for row in rows:
    losses, rates = row['losses'], row['rates']
    means = over_seeds(losses)
    a, b = np.unravel_index(np.argmin(means), means.shape)
    diagonal = np.diagonal(means)
    k = int(np.argmin(diagonal))
    near = np.argwhere(means <= 1.01 * means[a, b])
    ratios = rates[near[:, 1]] / rates[near[:, 0]]
    gain = sweeps.geometric_mean(losses[k, k] / losses[a, b])
    lines.append(
      [row['start'], row['step'], f'{rates[a]:.2g}, {rates[b]:.2g}',
       sweeps.short(rates[b] / rates[a]),
       ' to '.join(sweeps.short(x) for x in (ratios.min(), ratios.max())),
       sweeps.geometric_mean(losses[a, b]).text(3),
       f'{diagonal[k]:.3g} at {rates[k]:.2g}', gain.text()]
    )  # fmt: skip
  header = ['start', 'step', 'best rates of A, B', 'ratio',
            'ratios within 1 %', 'loss', 'best of equal rates',
            'loss of equal / of best']  # fmt: skip
  return results.markdown(header, lines)


def over_seeds(losses):
  """Geometric means over the last axis; inf where a seed diverged."""
  with np.errstate(divide='ignore'):
    return np.exp(np.mean(np.log(losses), axis=-1))


def ratio_table(rows) -> str:
  lines = []
  for row in rows:
    octaves, losses = row['octaves'], row['losses']  # (octaves, seeds)
    chosen = octaves[np.argmin(losses, axis=0)]
    means = over_seeds(losses)
    near = octaves[means <= 1.1 * means.min()]
    equal = losses[np.flatnonzero(octaves == 0)[0]] / losses.min(axis=0)
    lines.append(
      [row['start'], row['width'], f'{row["rate_a"]:.2g}',
       f'{row["rate_b"]:.2g}',
       f'{2.0 ** octaves[np.argmin(means)]:g}',
       f'{2.0 ** np.mean(chosen):.2g} '
       f'[{2.0 ** chosen.min():g} to {2.0 ** chosen.max():g}]',
       f'{2.0 ** near.min():g} to {2.0 ** near.max():g}',
       sweeps.geometric_mean(equal).text()]
    )  # fmt: skip
  header = ['start', 'width', 'best rate of A', 'of B', 'best ratio',
            'over seeds', 'ratios within 10 %',
            'loss of equal rates / of best']  # fmt: skip
  return results.markdown(header, lines)


def draw_scaling(rows, path):
  starts = list(dict.fromkeys(r['start'] for r in rows))
  canvas, axes = drawing.panels(len(starts), 4, 2.7, 2.5, sharey=True)
  for line, start in zip(axes, starts, strict=True):
    for panel, policy in zip(line, POLICIES, strict=True):
      chosen = pick(rows, start, policy)
      widths = [r['width'] for r in chosen]
      sizes = np.array([r['early'] for r in chosen])
      for t, (name, colour) in enumerate(
        zip(TERMS, drawing.COLOURS, strict=False)
      ):
        middle = over_seeds(sizes[:, :, t])
        panel.plot(widths, middle, color=colour, marker='.', label=name)
        panel.fill_between(
          widths, sizes[:, :, t].min(1), sizes[:, :, t].max(1),
          color=colour, alpha=0.2, linewidth=0,
        )  # fmt: skip
      panel.set(xscale='log', yscale='log')
      panel.set_title(f'{start}, {policy}', fontsize=8)
    line[0].set_ylabel('change of a feature, steps 2, 3', fontsize=8)
  for panel in axes[-1]:
    panel.set_xlabel('width', fontsize=8)
  axes[0, 0].legend(fontsize=7, frameon=False)
  drawing.save(canvas, path)


def draw_heat(rows, path):
  steps = list(dict.fromkeys(r['step'] for r in rows))
  starts = list(dict.fromkeys(r['start'] for r in rows))
  canvas, axes = drawing.panels(len(steps), len(starts), 3.5, 3.0)
  for (i, step), (j, start) in (
    (a, b) for a in enumerate(steps) for b in enumerate(starts)
  ):
    row = next(r for r in rows if (r['step'], r['start']) == (step, start))
    means, exponents = over_seeds(row['losses']), np.log2(row['rates'])
    panel = axes[i, j]
    edges = np.append(exponents, 2 * exponents[-1] - exponents[-2])
    edges = edges - (exponents[1] - exponents[0]) / 2
    least = means.min()
    top = max(means[0, 0], 1.5 * least)
    image = panel.pcolormesh(
      edges, edges, np.clip(means, least, top), cmap='cividis',
      norm=colors.LogNorm(least, top),
    )  # fmt: skip
    near = np.argwhere(means <= 1.01 * least)
    panel.plot(exponents[near[:, 1]], exponents[near[:, 0]], 's', color='red',
               markersize=4, markerfacecolor='none')  # fmt: skip
    panel.plot(edges, edges, color='white', linewidth=0.8, linestyle=':')
    panel.set_title(f'{start}, after {step} steps', fontsize=9)
    panel.set_xlabel('log2 of the rate of B', fontsize=8)
    panel.set_ylabel('log2 of the rate of A', fontsize=8)
    canvas.colorbar(image, ax=panel)
  drawing.save(canvas, path)


def draw_ratio(rows, path):
  starts = list(dict.fromkeys(r['start'] for r in rows))
  canvas, axes = drawing.panels(1, len(starts), 4.0, 3.0, sharey=True)
  for panel, start in zip(axes[0], starts, strict=True):
    chosen = [r for r in rows if r['start'] == start]
    for row, colour in zip(chosen, drawing.COLOURS, strict=False):
      losses = np.minimum(row['losses'], 10)
      x = 2.0 ** row['octaves']
      panel.plot(x, over_seeds(losses), color=colour,
                 label=f'width {row["width"]}')  # fmt: skip
      panel.fill_between(x, losses.min(1), losses.max(1), color=colour,
                         alpha=0.15, linewidth=0)  # fmt: skip
    panel.axvline(1, color=drawing.GREY, linewidth=0.8, linestyle=':')
    panel.set(xscale='log', yscale='log', title=start)
    panel.set_xlabel('rate of B / rate of A')
  axes[0, 0].set_ylabel('least loss with this ratio')
  axes[0, 0].legend(fontsize=8, frameon=False)
  drawing.save(canvas, path)


PARTS = {
  'scaling': (scaling_table, draw_scaling),
  'heat': (heat_table, draw_heat),
  'ratio': (ratio_table, draw_ratio),
}


def sections(folder):
  return {
    part: table(results.load_rows(folder / f'{part}.jsonl'))
    for part, (table, _) in PARTS.items()
  }


def draw(folder):
  for part, (_, picture) in PARTS.items():
    picture(results.load_rows(folder / f'{part}.jsonl'), folder / f'{part}.png')


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
