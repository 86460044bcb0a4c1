"""A common style for the plots of all experiments."""

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


def save(canvas: figure.Figure, path: pathlib.Path) -> None:
  """Saves a PNG without the software's version: same input, same file."""
  canvas.savefig(path, dpi=110, metadata={'Software': None})
