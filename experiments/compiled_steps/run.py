"""Compiles whole training steps for TPUs and GPUs: ours and tunix's.

    python -m experiments.compiled_steps.run [CASE ...] --tunix PYTHON

compiles every side of the cases that result.json does not have, one after
another in separate processes, and makes the README's table and plot from it.
"""

import argparse
import collections
import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

from experiments import drawing
from experiments.compiled_steps import cases

HERE = pathlib.Path(__file__).parent
RESULT, README = HERE / 'result.json', HERE / 'README.md'
START, END = '<!-- table -->\n', '<!-- end of table -->\n'
# The sides of a case that are compiled: module, and its flags.
SIDES = {
  'lora_opt, full': ('ours', '--remat=full'),
  'lora_opt, full, plain attention': (
    *('ours', '--remat=full', '--attention=plain'),
  ),
  'lora_opt, projections': ('ours', '--remat=projections'),
  'lora_opt, projections, plain attention': (
    *('ours', '--remat=projections', '--attention=plain'),
  ),
  'tunix, DECODER': ('tunix_step', '--remat=DECODER'),
  'tunix, NONE': ('tunix_step', '--remat=NONE'),
}


def compiled(case: str, side: str, tunix: str | None) -> dict | None:
  """Compiles a side of a case; returns None if it needs tunix and has none."""
  module, *flags = SIDES[side]
  python = sys.executable if module == 'ours' else tunix
  if python is None:
    return None
  words = [python, '-m', f'experiments.compiled_steps.{module}', case, *flags]
  print(shlex.join(words), flush=True)
  done = subprocess.run(words, stdout=subprocess.PIPE, encoding='utf-8')
  if done.returncode:
    return {'refused': 'see the error above'}
  return json.loads(done.stdout.splitlines()[-1])


def row(side: str, found: dict, best: dict[str, float]) -> str:
  """A row of the table, with ratios to the best peer in parentheses."""
  if 'refused' in found:
    return f'| {side} | does not fit{" |" * 6}'

  def against(value, what):
    ours = 'tunix' not in side and what in best
    return f' ({value / best[what]:.2f})' if ours else ''

  peak = found['peak_bytes']
  sums = found['collectives'].values()
  cells = [
    side,
    f'{peak / 1e9:.2f}{against(peak, "peak_bytes")}',
    work(found, against),
    f'{found["flops"] / 1e12:.1f}',
    f'{sum(x["times"] for x in sums):,}',
    f'{sum(x["sent"] for x in sums) / 1e9:.1f}',
    f'{found["compile_seconds"]:,.0f}',
  ]
  return f'| {" | ".join(cells)} |'


def work(found: dict, against: Callable[[float, str], str]) -> str:
  """Cycles on TPUs, or bytes and kernels on GPUs."""
  cycles = found['cycles']
  if not cycles:
    moved = found['launches']['bytes']
    kernels = found['launches']['kernels']
    return f'{moved / 1e9:,.0f}{against(moved, "bytes")} in {kernels:,}'
  most, kernels = cycles['most'], sum(cycles['uncounted'].values())
  counted = f'{most / 1e6:,.1f}'
  return counted + (
    f' and {kernels} kernels' if kernels else against(most, 'cycles')
  )


def best_of(sides: dict[str, dict]) -> dict[str, float]:
  """The smallest of tunix's values, by quantity."""
  theirs = [
    found
    for side, found in sides.items()
    if 'tunix' in side and 'refused' not in found
  ]
  values = collections.defaultdict(list)
  for found in theirs:
    values['peak_bytes'].append(found['peak_bytes'])
    if found['cycles']:
      values['cycles'].append(found['cycles']['most'])
    else:
      values['bytes'].append(found['launches']['bytes'])
  return {what: min(numbers) for what, numbers in values.items()}


def table(results: dict[str, dict]) -> str:
  """All cases, in Markdown."""
  lines = []
  for case, sides in results.items():
    on_gpus = 'h100' in case
    lines += [
      f'### {case}',
      '',
      '| | GB in use at one time '
      f'| {"GB accessed, in kernels" if on_gpus else "million cycles"} '
      '| TFLOP | collectives | GB sent | compile s |',
      '| --- | ---: | ---: | ---: | ---: | ---: | ---: |',
      *(
        row(side, sides[side], best_of(sides))
        for side in SIDES
        if side in sides
      ),
      '',
    ]
  return '\n'.join(lines)


def draw(results: dict[str, dict]) -> None:
  """Plots memory against cycles, with a panel for each case with cycles."""
  shown = {
    case: {
      side: found
      for side, found in sides.items()
      if found.get('cycles') and not found['cycles']['uncounted']
    }
    for case, sides in results.items()
  }
  # Keep cases with something to compare.
  shown = {case: sides for case, sides in shown.items() if len(sides) > 1}
  canvas, axes = drawing.panels(1, max(len(shown), 1), 4.2, 3.2)
  for panel, (case, sides) in zip(axes.flat, shown.items(), strict=False):
    for side, found in sides.items():
      peer = 'tunix' in side
      x, y = found['cycles']['most'] / 1e6, found['peak_bytes'] / 1e9
      panel.scatter(x, y, color=drawing.COLOURS[peer])
      label = side.removesuffix(', plain attention')
      panel.annotate(label, (x, y), fontsize=7, ha='center', va='bottom')
    panel.set(title=case, xlabel='million cycles', ylabel='GB in use')
    panel.margins(0.3)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
  drawing.save(canvas, HERE / 'memory_and_cycles.png')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('cases', nargs='*', type=cases.case)
  parser.add_argument('--tunix', help="the interpreter of tunix's environment")
  parser.add_argument('--sides', nargs='+', choices=SIDES, default=[*SIDES])
  args = parser.parse_args()
  results = (
    json.loads(RESULT.read_text(encoding='utf-8')) if RESULT.exists() else {}
  )
  for case in args.cases:
    for side in args.sides:
      if side in results.get(case.name, {}):
        continue
      found = compiled(case.name, side, args.tunix)
      if found is not None:
        results.setdefault(case.name, {})[side] = found
        RESULT.write_text(
          json.dumps(results, indent=1) + '\n', encoding='utf-8'
        )
  draw(results)
  text = README.read_text(encoding='utf-8')
  pattern = re.compile(f'{START}.*{END}', re.DOTALL)
  new = f'{START}\n{table(results)}\n{END}'
  README.write_text(pattern.sub(lambda _: new, text), encoding='utf-8')


if __name__ == '__main__':
  main()
