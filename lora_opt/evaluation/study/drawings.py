"""The drawings of a study, made as functions that draw on given axes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import ticker

from lora_opt.evaluation import _text, drawing
from lora_opt.evaluation._text import Json
from lora_opt.evaluation.drawing import Ink
from lora_opt.evaluation.study.pace import smooth
from lora_opt.evaluation.study.ranking import Chosen, Place, score
from lora_opt.evaluation.study.words import Unit

Draw = Callable[[mpl_axes.Axes, Ink], None]

# Distinguishable on white and on black; on paper by their dashes.
_COLORS = (
  *('#3b82c4', '#d9772b', '#3f9b5f', '#c04a55', '#8a67c0', '#2fa3ad'),
  *('#d070a8', '#7f8a2e', '#8c6d5a', '#b08c1f', '#6f7f95', '#a04fb0'),
)
_DASHES = ('-', (0, (5, 1.5)), (0, (1.5, 1)))


def styles(methods: Sequence[str]) -> dict[str, dict]:
  """Colour and dashes of each method, in the order given."""
  return {
    method: {
      'color': _COLORS[i % len(_COLORS)],
      'linestyle': _DASHES[(i + i // len(_COLORS)) % len(_DASHES)],
    }
    for i, method in enumerate(methods)
  }


def scores(places: Sequence[Place], unit: Unit) -> Draw:
  """Mean scores with their intervals, the best on top."""

  def draw(axes, ink):
    drawing.plain(axes, ink)
    heights = range(len(places))[::-1]
    for height, place in zip(heights, places, strict=True):
      mean, low, high = (
        None if x is None else unit.natural(x) for x in place.score
      )
      color = ink.muted if place.verdict == 'behind' else ink.accent
      if low is not None:
        axes.plot([low, high], [height] * 2, color=color, alpha=0.4, lw=5,
                  solid_capstyle='round')  # fmt: skip
      axes.plot([mean], [height], 'o', color=color, markersize=6)
    axes.set_yticks(heights, [drawing.caption(p.method) for p in places])
    axes.xaxis.set_major_formatter(_form(unit))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.grid(axis='y', visible=False)
    axes.grid(axis='x', color=ink.line, linewidth=0.7)
    axes.set_ylim(-0.7, len(places) - 0.3)

  return draw


def sweep(
  rows: Sequence[Json],
  chosen: Chosen | None,
  level: float | None,
  limits: tuple[float, float],
  unit: Unit,
) -> Draw:
  """Scores of one method in a group against the learning rate.

  Args:
    rows: all runs of the method in the group. Diverged runs are drawn as
      crosses at the worse end.
    chosen: the chosen learning rate, drawn as a ring.
    level: the baseline's score, drawn as a dashed line for comparison.
    limits: the limits of the score axis, the same for all methods of a group.
    unit: the unit of the scores. `level` and `limits` are as measured: losses
      are not negated.
  """

  def draw(axes, ink):
    drawing.plain(axes, ink)
    by_rate: dict[float, list[float]] = {}
    for row in rows:
      rate = row['learning_rate']
      if 'score' in row:
        by_rate.setdefault(rate, []).append(unit.natural(score(row, 1)))
      else:
        worst = limits[1] if unit.lower_is_better else limits[0]
        axes.plot([rate], [worst], 'x', color=ink.second, clip_on=False)
    rates = sorted(by_rate)
    means = [np.mean(by_rate[rate]) for rate in rates]
    if level is not None:
      axes.axhline(level, color=ink.muted, linewidth=0.8, dashes=(4, 3))
    if rates:
      low = [min(by_rate[rate]) for rate in rates]
      high = [max(by_rate[rate]) for rate in rates]
      axes.fill_between(rates, low, high, color=ink.accent, alpha=0.18, lw=0)
      axes.plot(rates, means, color=ink.accent, linewidth=1.6)
    for rate in rates:
      seeds = by_rate[rate]
      axes.plot([rate] * len(seeds), seeds, '.', color=ink.accent, ms=5)
    if chosen is not None:
      axes.plot(
        [chosen.learning_rate],
        [unit.natural(np.mean(chosen.scores))],
        'o',
        markersize=9,
        markerfacecolor='none',
        markeredgecolor=ink.second,
        markeredgewidth=1.6,
      )
    tried = sorted({row['learning_rate'] for row in rows})
    axes.set_xscale('log')
    axes.set_xlim(tried[0] / 1.6, tried[-1] * 1.6)
    axes.set_ylim(*limits)
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xticks(tried, [_text.brief(rate) for rate in tried])
    if len(tried) > 4:
      axes.set_xticks(tried[::2], [_text.brief(rate) for rate in tried[::2]])
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.yaxis.set_major_formatter(_form(unit))

  return draw


def losses(
  found: Mapping[str, Chosen], style: Mapping[str, Mapping[str, object]]
) -> Draw:
  """Training loss of every method of a group at its chosen learning rate."""

  def draw(axes, ink):
    drawing.plain(axes, ink)
    highest = []
    for method, chosen in found.items():
      curves = [row['curve'] for row in chosen.rows if 'curve' in row]
      if not curves:
        continue
      length = min(len(curve['loss']) for curve in curves)
      mean = np.mean([smooth(c['loss'])[:length] for c in curves], axis=0)
      axes.plot(
        curves[0]['step'][:length], mean, linewidth=1.5, **style[method]
      )
      highest.append(np.max(mean[length // 10 :]))
    if not highest:
      return
    low = axes.get_ylim()[0]
    # High losses at the first steps must not flatten the rest of the curves.
    axes.set_ylim(low, low + 1.1 * (np.median(highest) - low))

  return draw


def pairs(table: Mapping[str, Sequence[float]], limits: tuple) -> Draw:
  """A map of one number per LoRA pair: sites downwards, layers to the right."""

  def draw(axes, ink):
    values = np.array([table[site] for site in table])
    axes.pcolormesh(
      values, cmap='cividis', vmin=limits[0], vmax=limits[1], linewidth=0
    )
    names = [drawing.caption(site) for site in table]
    axes.set_yticks(np.arange(len(table)) + 0.5, names, fontsize=7)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7, colors=ink.muted, pad=3)

  return draw


def _form(unit: Unit) -> Callable[[float, int], str]:
  return drawing.tick if unit.lower_is_better else _points


def _points(value: float, _: int) -> str:
  return _text.minus(f'{100 * value:.3g}')
