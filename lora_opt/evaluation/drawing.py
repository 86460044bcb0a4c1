"""Makes drawings as inline SVG in a page's colours and fonts, or as PNG."""

import contextlib
import io
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import figure, ticker

from lora_opt import writing
from lora_opt.evaluation import _text


class Ink(NamedTuple):
  """The colours of a drawing, by purpose."""

  accent: str
  second: str
  muted: str
  line: str


# Matplotlib draws in these colours. They are then replaced by the page's own,
# so that drawings follow its light and dark themes.
PAGE = Ink('#0000a1', '#0000a2', '#0000a3', '#0000a4')
_THEME = {color: f'var(--{name})' for name, color in PAGE._asdict().items()}
# The page's light theme, for drawings outside a page.
PAPER = Ink('#2563a8', '#c2601c', '#676e77', '#dfdfd9')


def plain(axes: mpl_axes.Axes, ink: Ink = PAGE) -> None:
  """Styles axes with no frame, and a few light lines for reading heights."""
  nice = [1, 2, 2.5, 5, 10]
  axes.xaxis.set_major_formatter(tick)
  axes.yaxis.set_major_formatter(tick)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=nice))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=nice, integer=True))
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(ink.line)
  axes.grid(axis='y', color=ink.line, linewidth=0.7)
  axes.set_axisbelow(True)
  axes.tick_params(length=0, labelsize=9, colors=ink.muted, pad=5)
  axes.margins(x=0.02)


def tick(value: float, _: int) -> str:
  """Formats the label of an axis tick."""
  return _text.brief(value)


def percent(value: float, _: int) -> str:
  """Formats the label of an axis tick for a share, in percent."""
  return _text.minus(f'{100 * value:.3g} %')


def caption(name: str) -> str:
  """Makes a user's name fit into a drawing: short, on one line.

  >>> caption('a\\nb'), len(caption('x' * 1000))
  ('a?b', 40)
  """
  name = name if len(name) <= 40 else name[:39] + '…'
  return ''.join(c if c.isprintable() else '?' for c in name)


@contextlib.contextmanager
def _as_it_is(style: Mapping[str, str]) -> Iterator[None]:
  """Draws text literally: a name such as $x_$ is not a formula."""
  with (
    matplotlib.rc_context({'text.parse_math': False, **style}),
    warnings.catch_warnings(),
  ):
    # For names in a script that the font lacks; boxes are drawn instead.
    warnings.filterwarnings('ignore', 'Glyph .* missing from')
    yield


def to_svg(
  draw: Callable[[mpl_axes.Axes, Ink], None],
  size: tuple[float, float],
  name: str,
) -> str:
  """One drawing as an <svg> element.

  Args:
    draw: draws on the given axes in the given colours.
    size: width and height in inches.
    name: what the drawing shows, for screen readers.
  """
  text = io.StringIO()
  # The salt keeps the ids of several drawings on one page apart.
  style = {'svg.fonttype': 'none', 'svg.hashsalt': name}
  with _as_it_is(style):
    canvas = figure.Figure(figsize=size, layout='constrained')
    draw(canvas.add_subplot(), PAGE)
    canvas.savefig(text, format='svg', transparent=True)
  svg = text.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>\s*', '', svg, flags=re.DOTALL)
  svg = re.sub(r' id="[\w.]+_\d+"', '', svg)  # numbers repeat within a page
  svg = re.sub(r'\b(width|height)="[\d.]+pt" ', '', svg, count=2)
  svg = re.sub('|'.join(_THEME), lambda match: _THEME[match[0]], svg)
  title = _text.label(name).replace('"', '').replace('<', '').replace('&', '')
  return svg.replace('<svg', f'<svg role="img" aria-label="{title}"', 1)


def to_png(
  draws: dict[str, Callable[[mpl_axes.Axes, Ink], None]],
  size: tuple[float, float],
  path: pathlib.Path,
  *,
  columns: int = 1,
) -> None:
  """Writes drawings side by side to a PNG file.

  Args:
    draws: title -> function that draws on the given axes in the given colours.
    size: width and height of each drawing in inches.
    path: the file to write.
    columns: number of drawings in a row.
  """
  rows = -(-len(draws) // columns)
  with _as_it_is({}), writing.draft(path) as part:
    canvas = figure.Figure(
      figsize=(size[0] * columns, size[1] * rows), layout='constrained', dpi=150
    )
    for place, (title, draw) in enumerate(draws.items(), start=1):
      axes = canvas.add_subplot(rows, columns, place)
      axes.set_title(caption(title), fontsize=10, loc='left')
      draw(axes, PAPER)
    canvas.savefig(part, format='png')
