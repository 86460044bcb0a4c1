"""Pictures of the study."""

import numpy as np

from experiments import drawing
from experiments.small_lm import measures, plan
from experiments.small_lm.finetune import curve_steps

SHADES = ('#9ecae1', '#4292c6', '#08306b')
COLUMNS = 4
# Losses further above the least are cut off.
SHOWN = 0.6


def _line(panel, runs, top, **options):
  first = plan.swept(runs)
  powers = sorted(first)
  losses = np.minimum([first[p] for p in powers], top)
  panel.plot([plan.rate_of(p) for p in powers], losses, '.-', **options)


def _grid(names, width=2.7, height=2.1):
  rows = -(-len(names) // COLUMNS)
  canvas, axes = drawing.panels(rows, COLUMNS, width, height, sharey=True)
  for panel in axes.flat[len(names) :]:
    panel.set_visible(False)
  for panel in axes[:, 0]:
    panel.set_ylabel('held-out loss', fontsize=8)
  return canvas, list(zip(names, axes.flat, strict=False))


def sweeps_of(methods):
  """Loss against the learning rate; grey: rates within GOOD of the best."""
  least = {n: min(plan.swept(runs).values()) for n, runs in methods.items()}
  low = min(least.values())
  top = low + SHOWN
  canvas, panels = _grid(sorted(methods, key=least.get))
  for name, panel in panels:
    first = plan.swept(methods[name])
    left, right = measures.good_ends(methods[name])
    left = min(first) if left is None else left
    right = max(first) if right is None else right
    panel.axvspan(
      plan.rate_of(left), plan.rate_of(right), color='#e8eaed', linewidth=0
    )
    panel.axhline(least['adamw'], color='#555', linewidth=0.7, linestyle=':')
    _line(panel, methods[name], top, color=drawing.COLOURS[0], linewidth=1.2)
    for row in measures.best(methods[name]).values():
      panel.plot(row['rate'], row['loss'], '_', color=drawing.COLOURS[1])
    panel.set(xscale='log', ylim=(low - 0.03, top))
    panel.set_title(name, fontsize=8)
  return canvas


def curves(setting, methods):
  """Loss against steps at the best constant rates, means over seeds."""
  canvas, axes = drawing.panels(1, 1, 6.0, 3.8)
  panel, at = axes[0, 0], curve_steps(setting)
  lowest = []
  for name, colour in zip(plan.CORE, drawing.COLOURS, strict=False):
    if name not in methods:
      continue
    each = [r['curve'] for r in measures.best(methods[name]).values()]
    mean = np.mean([x for x in each if len(x) == len(at)], axis=0)
    lowest.append(mean.min())
    panel.plot(at, mean, '.-', color=colour, label=name, linewidth=1.2)
    if name == 'adamw':
      panel.axhline(mean.min(), color=colour, linewidth=0.7, linestyle=':')
  panel.set(xlabel='steps', ylabel='held-out loss')
  panel.set_ylim(min(lowest) - 0.02, min(lowest) + SHOWN)
  panel.legend(fontsize=8, frameon=False)
  return canvas


def transfer(ranks):
  """Loss against the learning rate, a line a rank."""
  names = [n for n in plan.CORE if any(n in of for of in ranks.values())]
  low = min(
    min(plan.swept(of[n]).values())
    for of in ranks.values()
    for n in names
    if n in of
  )
  canvas, panels = _grid(names)
  for name, panel in panels:
    for (rank, of), shade in zip(ranks.items(), SHADES, strict=True):
      if name not in of:
        continue
      _line(
        panel, of[name], low + SHOWN, color=shade, label=rank, linewidth=1.2
      )
      first = plan.swept(of[name])
      power = plan.best_power(first)
      panel.plot(plan.rate_of(power), first[power], 'o', color=shade)
    panel.set(xscale='log', ylim=(low - 0.03, low + SHOWN))
    panel.set_title(name, fontsize=8)
  panels[0][1].legend(title='rank', fontsize=7, frameon=False)
  return canvas
