"""Tables and picture of results.jsonl.

python -m experiments.compiled_optimizers.report
"""

import collections
import pathlib
import re

from experiments import drawing, results

HERE = pathlib.Path(__file__).parent
FILE = HERE / 'results.jsonl'
KEYS = ('chips', 'tree', 'layout', 'method')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Calls that are LAPACK's work, as TPUs and GPUs name them.
_LAPACK = re.compile(
  'cholesky|triangular|eigh|syev|cusolver|potrf|trsm|ludecomp', re.I
)


def custom_calls(text: str) -> dict[str, int]:
  """Of LAPACK's kind: target -> how many stand in the program."""
  found = collections.Counter(_TARGET.findall(text))
  return {
    name: count for name, count in sorted(found.items()) if _LAPACK.search(name)
  }


def table(rows: list[dict]) -> str:
  """One chip, tree and layout; the first row is the baseline."""
  base = rows[0]

  def over(row, i):
    if row['cycles'] is None or base['cycles'] is None:
      return '-'
    return f'{row["cycles"][i] / base["cycles"][i]:.2f}'

  lines = []
  for row in rows:
    calls = ', '.join(f'{n} x{k}' for n, k in row['custom_calls'].items())
    lines.append(
      [
        row['method'],
        row['compile_cpu_seconds'],
        over(row, 0),
        over(row, 1),
        '-'
        if row['bytes_accessed'] is None
        else f'{row["bytes_accessed"] / 1e6:.0f}',
        f'{row["temporary_bytes"] / 1e6:.1f}',
        calls or 'none',
        row['collectives'],
        f'{row["bytes_sent"] / 1e6:.2f}',
      ]
    )
  header = [
    'method', 'compile, CPU s', 'cycles, least', 'cycles, most',
    'MB accessed', 'MB temporary', 'LAPACK calls', 'collectives', 'MB sent',
  ]  # fmt: skip
  return results.markdown(header, lines)


def groups(rows):
  found = collections.defaultdict(list)
  for row in rows:
    found[row['chips'], row['tree'], row['layout']].append(row)
  return found


def sections(folder: pathlib.Path) -> dict[str, str]:
  rows = results.load_rows(folder / FILE.name)
  parts = [
    f'### {tree}, {layout}, {chips}\n\n{table(own)}'
    for (chips, tree, layout), own in groups(rows).items()
  ]
  return {'tables': '\n\n'.join(parts)}


def draw(folder: pathlib.Path) -> None:
  """Cycles over the baseline's, one panel for each tree."""
  found = {
    key: own
    for key, own in groups(results.load_rows(folder / FILE.name)).items()
    if own[0]['cycles'] is not None and key[2] == 'stacked'
  }
  canvas, axes = drawing.panels(1, len(found), 5, 4)
  for ax, ((chips, tree, _), rows) in zip(
    axes.flat, found.items(), strict=True
  ):
    names = [row['method'] for row in rows]
    values = [row['cycles'][0] / rows[0]['cycles'][0] for row in rows]
    ax.barh(names, values, color=drawing.COLOURS[0])
    ax.bar_label(ax.containers[0], fmt='%.1f', fontsize=7, padding=2)
    ax.axvline(1, color=drawing.GREY, linewidth=0.8)
    ax.invert_yaxis()
    ax.set(xscale='log', title=f'{tree}, {chips}', xlabel="cycles over AdamW's")
  drawing.save(canvas, folder / 'cycles.png')


def main(argv=None) -> None:
  results.rebuild(__doc__, HERE, sections, draw, argv)


if __name__ == '__main__':
  main()
