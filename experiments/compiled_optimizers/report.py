"""Makes the tables and the plot of results.jsonl.

python -m experiments.compiled_optimizers.report
"""

import collections
import pathlib
import re

import numpy as np
from matplotlib import ticker

from experiments import drawing, results
from experiments.optimizer_step.run import methods

HERE = pathlib.Path(__file__).parent
FILE = HERE / 'results.jsonl'
KEYS = ('chips', 'tree', 'layout', 'method')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Calls that do LAPACK's work, as TPUs and GPUs name them.
_LAPACK = re.compile(
  'cholesky|triangular|eigh|syev|cusolver|potrf|trsm|ludecomp', re.I
)


def custom_calls(text: str) -> dict[str, int]:
  """LAPACK-like calls in the program: target -> number of occurrences."""
  found = collections.Counter(_TARGET.findall(text))
  return {
    name: count for name, count in sorted(found.items()) if _LAPACK.search(name)
  }


def table(rows: list[dict]) -> str:
  """The table of one chip, tree and layout; the first row is the baseline."""
  base = rows[0]
  on_tpus = not np.isscalar(base['cycles'])
  lines = []
  for row in rows:
    calls = ', '.join(f'{n} x{k}' for n, k in row['custom_calls'].items())
    seconds = row['compile_cpu_seconds']
    if on_tpus:
      work = [
        *_over(row['cycles'], base['cycles']),
        f'{row["bytes_accessed"] / 1e6:.0f}',
      ]
    else:
      moved = row['bytes_accessed']
      work = [
        *(f'{count:,.0f}' for count in row['kernels']),
        *_over(moved, base['bytes_accessed']),
        f'{moved[0] / 1e6:.0f}',
      ]
    lines.append(
      [
        row['method'],
        f'{seconds} ({seconds / base["compile_cpu_seconds"]:.1f})',
        *work,
        f'{row["temporary_bytes"] / 1e6:.1f}',
        calls or 'none',
        row['collectives'],
        f'{row["bytes_sent"] / 1e6:.2f}',
      ]
    )
  return results.markdown(
    [
      'method',
      'compile, CPU s',
      *(ON_TPUS if on_tpus else ON_GPUS),
      *('MB temporary', 'LAPACK calls', 'collectives', 'MB sent'),
    ],
    lines,
  )


ON_TPUS = ('cycles, least', 'cycles, most', 'MB accessed')
ON_GPUS = (
  *('kernels, least', 'kernels, most'),
  *('bytes, least', 'bytes, most', 'MB accessed'),
)


def _over(values, base) -> list[str]:
  return [f'{x / y:.2f}' for x, y in zip(values, base, strict=True)]


def groups(rows: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
  """(chips, tree, layout) -> the rows, the baseline first."""
  order = {name: place for place, name in enumerate(methods(1e-3))}
  found = collections.defaultdict(list)
  for row in sorted(rows, key=lambda row: order[row['method']]):
    found[row['chips'], row['tree'], row['layout']].append(row)
  return {key: found[key] for key in sorted(found, key=_place)}


def _place(key: tuple[str, str, str]):
  chips, tree, layout = key
  return chips != 'v5e-8', layout != 'stacked', tree


def sections(folder: pathlib.Path) -> dict[str, str]:
  """The README's tables."""
  rows = results.load_rows(folder / FILE.name)
  parts = [
    f'### {tree}, {layout}, {chips}\n\n{table(own)}'
    for (chips, tree, layout), own in groups(rows).items()
  ]
  return {'tables': '\n\n'.join(parts)}


def draw(folder: pathlib.Path) -> None:
  """Plots cycles (TPUs) or bytes (GPUs) over the baseline's, by tree."""
  found = groups(results.load_rows(folder / FILE.name))
  chips = list(dict.fromkeys(key[0] for key in found))
  trees = list(dict.fromkeys(key[1] for key in found))
  canvas, axes = drawing.panels(len(chips), len(trees), 5.4, 5)
  for row, chip in zip(axes, chips, strict=True):
    for panel, tree in zip(row, trees, strict=True):
      own = {
        layout: rows
        for (*where, layout), rows in found.items()
        if where == [chip, tree]
      }
      panel.set(title=f'{tree}, {chip}', xscale='log')
      _bars(panel, own)
      panel.set_xlabel(f"{_measure(own['stacked'][0])} over AdamW's")
      panel.legend(fontsize=7, frameon=False)
  drawing.save(canvas, folder / 'cycles.png')


def _measure(row: dict) -> str:
  return 'bytes accessed' if np.isscalar(row['cycles']) else 'cycles'


def _bars(panel, layouts: dict[str, list[dict]]) -> None:
  """Draws a bar per method and layout: solid to the least, pale to the most."""
  names = [row['method'] for row in layouts['stacked']]
  height = 0.8 / len(layouts)
  for i, (layout, rows) in enumerate(layouts.items()):
    key = _measure(rows[0]).replace(' ', '_')
    least, most = (
      np.array([row[key][j] / rows[0][key][j] for row in rows])
      for j in range(2)
    )
    places = np.array([names.index(row['method']) for row in rows])
    places = places + (i - (len(layouts) - 1) / 2) * height
    colour = drawing.COLOURS[i]
    panel.barh(places, least, height, color=colour, label=layout)
    more = most > least * 1.01
    panel.barh(
      places[more],
      (most - least)[more],
      height,
      left=least[more],
      color=colour,
      alpha=0.25,
    )
    for place, value in zip(places, least, strict=True):
      panel.annotate(f'{value:.1f}', (value, place), xytext=(2, 0),
                     textcoords='offset points', va='center',
                     fontsize=6)  # fmt: skip
  panel.axvline(1, color=drawing.GREY, linewidth=0.8)
  panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  panel.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  panel.xaxis.set_minor_formatter(ticker.NullFormatter())
  panel.set_yticks(range(len(names)), names)
  panel.invert_yaxis()


def main(argv=None) -> None:
  results.rebuild(__doc__, HERE, sections, draw, argv)


if __name__ == '__main__':
  main()
