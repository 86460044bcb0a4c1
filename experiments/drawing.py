"""A common style for the plots of all experiments."""

import math
import pathlib

from matplotlib import figure

# Distinct in print and for colour-blind readers (Okabe and Ito's palette).
COLOURS = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
  '#000000',
  '#8c564b',
)
GREY = '#9aa0a6'
# Leading digits of labelled numbers on axes of at most so many decades.
_LEADING = (
  (0.6, (1, 1.5, 2, 3, 5, 7)),
  (1.3, (1, 2, 5)),
  (2.0, (1, 3)),
  (math.inf, (1,)),
)


def panels(rows: int, columns: int, width: float, height: float, **options):
  """Returns (figure, axes (rows, columns)); panel sizes are in inches."""
  canvas = figure.Figure(
    figsize=(width * columns, height * rows), layout='constrained'
  )
  axes = canvas.subplots(rows, columns, squeeze=False, **options)
  for panel in axes.flat:
    panel.spines[['top', 'right']].set_visible(False)
    panel.tick_params(labelsize=8)
  return canvas, axes


def plain_log_ticks(panel) -> None:
  """Labels a logarithmic x axis with few plain numbers, after plotting."""
  low, high = panel.get_xlim()
  decades = math.log10(high / low)
  leading = next(digits for most, digits in _LEADING if decades < most)
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
  ticks = [x * 10.0**p for p in powers for x in leading]
  ticks = [t for t in ticks if low <= t <= high]
  panel.set_xticks(ticks, [f'{t:g}' for t in ticks])
  panel.set_xticks([], minor=True)
  panel.set_xlim(low, high)


def save(canvas: figure.Figure, path: pathlib.Path) -> None:
  """Saves a PNG without the software's version: same input, same file."""
  canvas.savefig(path, dpi=110, metadata={'Software': None})
