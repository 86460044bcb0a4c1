"""The results of `run.py` as a table and as a plot."""

import pathlib

from matplotlib import figure, ticker


def table(rows: list[dict]) -> str:
  """Markdown with one table per tree and layout."""
  text = []
  for key in dict.fromkeys((r['tree'], r['layout'], r['rank']) for r in rows):
    tree, layout, rank = key
    text.append(f'\n{tree}, rank {rank}, {layout}\n')
    text.append('| method | time / optax.adamw | ms | state | compile s |')
    text.append('| --- | --- | --- | --- | --- |')
    for row in _of(rows, *key):
      low, high = row['quartiles']
      compile_seconds = row['compile_seconds']
      text.append(
        f'| {row["method"]} | {row["ratio"]:.2f} [{low:.2f}, {high:.2f}] '
        f'| {row["milliseconds"]:.1f} | {row["state_ratio"]:.2f} '
        f'| {"" if compile_seconds is None else f"{compile_seconds:.1f}"} |'
      )
  return '\n'.join(text) + '\n'


def draw(rows: list[dict], path: pathlib.Path) -> None:
  """Draws ratios as bars with quartiles, one panel per tree and layout."""
  keys = list(dict.fromkeys((r['tree'], r['layout'], r['rank']) for r in rows))
  longest = max(len(_of(rows, *key)) for key in keys)
  canvas = figure.Figure(
    figsize=(5.2 * len(keys), 0.9 + 0.27 * longest), layout='constrained'
  )
  for panel, key in zip(
    canvas.subplots(1, len(keys), squeeze=False)[0], keys, strict=True
  ):
    chosen = _of(rows, *key)[::-1]
    middle = [row['ratio'] for row in chosen]
    spread = [
      [row['ratio'] - row['quartiles'][0] for row in chosen],
      [row['quartiles'][1] - row['ratio'] for row in chosen],
    ]
    names = [row['method'] for row in chosen]
    colours = ['#9aa0a6' if _foreign(name) else '#3465a4' for name in names]
    panel.barh(names, middle, xerr=spread, color=colours, height=0.7,
               error_kw={'linewidth': 1, 'ecolor': '#555'})  # fmt: skip
    for y, row in enumerate(chosen):
      panel.annotate(f'{row["ratio"]:.2g}', (row['quartiles'][1], y),
                     xytext=(4, 0), textcoords='offset points',
                     va='center', fontsize=8)  # fmt: skip
    panel.axvline(1, color='#555', linewidth=0.8)
    panel.set_xscale('log')
    panel.set_xlim(0.5, 2 * max(middle))
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panel.set_xlabel('time of a step / optax.adamw, stacked')
    panel.set_title(f'{key[0]}, rank {key[2]}, {key[1]}', fontsize=10)
    panel.spines[['top', 'right']].set_visible(False)
  canvas.savefig(path, dpi=150)


def _of(rows, tree, layout, rank):
  wanted = (tree, layout, rank)
  chosen = [r for r in rows if (r['tree'], r['layout'], r['rank']) == wanted]
  return sorted(chosen, key=lambda row: row['ratio'])


def _foreign(name: str) -> bool:
  return 'torch' in name or 'optax' in name
