"""Pictures of the study."""

import numpy as np

from experiments import drawing
from experiments.small_lm import measures, plan
from experiments.small_lm.finetune import curve_steps

SHADES = ('#9ecae1', '#4292c6', '#08306b')
COLUMNS = 4
# Losses further above the reference are cut off.
SHOWN = 0.3


def _line(panel, first, zero, **options):
  """Losses {power: loss}, less `zero` and cut off at SHOWN."""
  powers = sorted(first)
  losses = np.minimum([first[p] - zero for p in powers], SHOWN)
  panel.plot([plan.rate_of(p) for p in powers], losses, '.-', **options)


def _grid(names, width=2.7, height=2.1):
  rows = -(-len(names) // COLUMNS)
  canvas, axes = drawing.panels(rows, COLUMNS, width, height, sharey=True)
  for panel in axes.flat[len(names) :]:
    panel.set_visible(False)
  for panel in axes[:, 0]:
    panel.set_ylabel('loss above adamw', fontsize=8)
  return canvas, list(zip(names, axes.flat, strict=False))


def sweeps_of(methods):
  """Loss against the learning rate; grey: rates within GOOD of the best.

  Losses are relative to the lowest of adamw, which is dotted.
  """
  least = {n: min(plan.swept(runs).values()) for n, runs in methods.items()}
  shown = {n: runs for n, runs in methods.items() if n not in plan.FULL}
  zero = least['adamw']
  low = min(least[n] for n in shown) - zero
  canvas, panels = _grid(sorted(shown, key=least.get))
  for name, panel in panels:
    first = plan.swept(methods[name])
    left, right = measures.good_ends(methods[name])
    left = min(first) if left is None else left
    right = max(first) if right is None else right
    panel.axvspan(
      plan.rate_of(left), plan.rate_of(right), color='#e8eaed', linewidth=0
    )
    panel.axhline(0, color='#555', linewidth=0.7, linestyle=':')
    options = {'color': drawing.COLOURS[0], 'linewidth': 1.2}
    _line(panel, first, zero, **options)
    for row in measures.best(methods[name]).values():
      panel.plot(row['rate'], row['loss'] - zero, '_', color=drawing.COLOURS[1])
    panel.set(xscale='log', ylim=(low - 0.02, SHOWN))
    panel.set_title(name, fontsize=8)
    drawing.plain_log_ticks(panel)
  return canvas


def curves(setting, methods):
  """Loss against steps at the best constant rates, means over seeds."""
  canvas, axes = drawing.panels(1, 1, 6.0, 3.8)
  panel, at = axes[0, 0], curve_steps(setting)
  lowest = []
  colours = dict(zip(plan.CORE, drawing.COLOURS, strict=False))
  for name in (*plan.CORE, *plan.AVERAGED):
    if name not in methods:
      continue
    recipe = plan.AVERAGED.get(name, name)
    colour, line = colours[recipe], '.-' if name == recipe else '.:'
    each = [r['curve'] for r in measures.best(methods[name]).values()]
    mean = np.mean([x for x in each if len(x) == len(at)], axis=0)
    lowest.append(mean.min())
    panel.plot(at, mean, line, color=colour, label=name, linewidth=1.2)
    if name == 'adamw':
      panel.axhline(mean.min(), color=colour, linewidth=0.7, linestyle=':')
  panel.set(xlabel='steps', ylabel='held-out loss')
  panel.set_ylim(min(lowest) - 0.02, min(lowest) + 2 * SHOWN)
  panel.legend(fontsize=8, frameon=False)
  return canvas


def transfer(axes):
  """Loss against the learning rate over ranks, alphas and widths.

  Args:
    axes: {what is varied: {its value: {method: runs}}}.
  """
  names = [
    n
    for n in plan.CORE
    if any(n in of for v in axes.values() for of in v.values())
  ]
  canvas, panels = drawing.panels(
    len(names), len(axes), 2.6, 1.9, sharey=True, sharex='row'
  )
  for row, name in zip(panels, names, strict=True):
    for panel, (what, values) in zip(row, axes.items(), strict=True):
      for (value, of), shade in zip(values.items(), SHADES, strict=False):
        if name in of:
          first = plan.swept(of[name])
          power = plan.best_power(first)
          options = {'color': shade, 'label': f'{value:g}', 'linewidth': 1.2}
          _line(panel, first, first[power], **options)
          panel.plot(plan.rate_of(power), 0, 'o', color=shade)
      panel.set(xscale='log', ylim=(-0.02, SHOWN))
      panel.set_title(f'{name}: {what}', fontsize=8)
      if panel.lines:
        panel.legend(fontsize=7, frameon=False)
    drawing.plain_log_ticks(row[0])
    row[0].set_ylabel('loss above the best', fontsize=8)
  return canvas
