"""Makes the tables and plots of `run.py` from the committed results."""

import numpy as np
from matplotlib import colors

from experiments import drawing, results
from experiments.invariance.run import CONDITIONS, FOLDER, KINDS, STARTS

# In float64, relative to the length of the path. Rounding errors, amplified by
# T of condition 100 and by training, stay far below; methods that are not
# invariant are far above. Effects of the epsilons of Adam and LAMB lie between:
# they count as invariant.
LIMIT = 1e-4
LINES = {
  'lora_rite': 'lora_rite',
  'lora_muon': 'lora_muon',
  'RefLoRA in front of SGD': 'RefLoRA, SGD',
  'reflora': 'reflora (Adam)',
  'reflora, real': 'reflora, real (Adam)',
  'lora_plus': 'lora_plus',
  'adamw': 'adamw',
  'sgd': 'sgd',
}


def group(largest) -> str:
  """The largest of the tested groups under which no path changed."""
  same = {k for k, x in zip(KINDS, largest, strict=True) if x.max() < LIMIT}
  if 100 in same:
    return 'GL(r)'
  names = []
  if 'orthogonal' in same:
    names = ['O(r)']
  elif 'signed permutation' in same:
    names = ['signed permutations']
  if 'scalar' in same:
    names.append('scalars')
  return ', '.join(names) or 'none'


def pick(rows, dtype, start):
  return {
    r['method']: r for r in rows if (r['dtype'], r['start']) == (dtype, start)
  }


def power(x) -> str:
  """Formats a distance; small ones as one digit and a power of ten.

  >>> power(3e-13), power(0.42), power(0.0)
  ('3e-13', '0.42', '0')
  """
  if not np.isfinite(x):
    return 'inf'
  return f'{x:.2g}' if x > 0.005 or x == 0 else f'{x:.0e}'.replace('e-0', 'e-')


def groups_table(rows) -> str:
  full, zero = (pick(rows, 'float64', start) for start in STARTS)
  lines = []
  for name, row in full.items():
    found, from_zero = group(row['largest']), group(zero[name]['largest'])
    expected = row['expected']
    agrees = 'yes' if found == expected else '**no**'
    worst = dict(zip(KINDS, row['largest'].max(axis=1), strict=True))
    numbers = [power(worst[k]) for k in (*KINDS[:3], 100)]
    lines.append([name, expected, found, agrees, *numbers, from_zero])
  header = ['recipe', 'expected', 'measured', 'agree', 'signed permutation',
            'scalar', 'orthogonal', 'condition 100', 'from B = 0']  # fmt: skip
  return results.markdown(header, lines)


def conditions_table(rows) -> str:
  """Distances of recipes that should be invariant to T, by its condition."""
  lines = []
  for dtype in ('float64', 'float32'):
    chosen = pick(rows, dtype, STARTS[0])
    for name, row in chosen.items():
      if row['expected'] == 'GL(r)':
        worst = row['largest'].max(axis=1)[-len(CONDITIONS) :]
        lines.append([dtype, name, *map(power, worst)])
    floor = row['at_start'][-len(CONDITIONS) :]
    lines.append([dtype, 'of the two starts', *map(power, floor)])
  return results.markdown(['', 'recipe', *CONDITIONS], lines)


def draw_map(rows, path):
  canvas, axes = drawing.panels(1, 2, 5.2, 6.6, sharey=True)
  norm = colors.LogNorm(1e-15, 1)
  for panel, dtype in zip(axes[0], ('float64', 'float32'), strict=True):
    chosen = pick(rows, dtype, STARTS[0])
    worst = np.array([r['largest'].max(axis=1) for r in chosen.values()])
    image = panel.imshow(
      np.clip(worst, 1e-15, 1), norm=norm, cmap='cividis', aspect='auto'
    )
    names = [k if isinstance(k, str) else f'condition {k:g}' for k in KINDS]
    panel.set_xticks(range(len(KINDS)), names, rotation=40, ha='right')
    panel.set_yticks(range(len(chosen)), list(chosen))
    panel.set_title(dtype, fontsize=10)
    panel.spines[:].set_visible(False)
    for i, j in np.ndindex(worst.shape):
      dark = worst[i, j] < 1e-6
      panel.text(j, i, power(worst[i, j]), ha='center', va='center',
                 fontsize=6.5, color='white' if dark else 'black')  # fmt: skip
  canvas.colorbar(
    image, ax=axes[0], shrink=0.5,
    label='largest distance of A B^T / length of its path'
  )  # fmt: skip
  drawing.save(canvas, path)


def draw_lines(rows, path):
  canvas, axes = drawing.panels(2, 2, 4.6, 3.1, sharey='row')
  for column, dtype in enumerate(('float64', 'float32')):
    chosen = pick(rows, dtype, STARTS[0])
    over_steps, over_conditions = axes[:, column]
    names = [n for n in LINES if n in chosen]
    for name, colour in zip(names, drawing.COLOURS, strict=False):
      row = chosen[name]
      steps = np.maximum(row['over_steps'], 1e-17)
      dashes = '--' if name == 'reflora' else '-'
      over_steps.plot(
        steps, color=colour, label=LINES[name], linestyle=dashes, zorder=3
      )
      middle = np.median(row['largest'], axis=1)[-len(CONDITIONS) :]
      low, high = (
        f(row['largest'], axis=1)[-len(CONDITIONS) :] for f in (np.min, np.max)
      )
      over_conditions.plot(
        CONDITIONS, middle, color=colour, marker='.', linestyle=dashes, zorder=3
      )
      over_conditions.fill_between(
        CONDITIONS, low, high, color=colour, alpha=0.15, linewidth=0
      )
    floor = row['at_start'][-len(CONDITIONS) :]
    over_conditions.plot(
      CONDITIONS, floor, color=drawing.GREY, linestyle=':', label='two starts'
    )
    over_steps.set(yscale='log', ylim=(1e-17, 10), xlabel='step')
    over_conditions.set(xscale='log', yscale='log', ylim=(1e-17, 10))
    over_conditions.set_xlabel('condition of T')
    over_steps.set_title(f'{dtype}, condition of T 100', fontsize=10)
    over_conditions.set_title(f'{dtype}, largest over 30 steps', fontsize=10)
    over_conditions.legend(fontsize=7, frameon=False)
  for panel in axes[:, 0]:
    panel.set_ylabel('distance / length of path', fontsize=9)
  axes[0, 1].legend(fontsize=7, frameon=False, ncols=2)
  drawing.save(canvas, path)


def sections(folder):
  rows = results.load_rows(folder / 'results.jsonl')
  return {'groups': groups_table(rows), 'conditions': conditions_table(rows)}


def draw(folder):
  rows = results.load_rows(folder / 'results.jsonl')
  draw_map(rows, folder / 'map.png')
  draw_lines(rows, folder / 'paths.png')


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
