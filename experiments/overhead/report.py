"""Makes the table and plot of `run.py` from the committed result."""

import collections
import json
import pathlib

from experiments import results
from lora_opt.evaluation import drawing

FOLDER = pathlib.Path(__file__).parent
BASELINE = 'adamw'
# Iterations per second and MB, from the RefLoRA paper. The LoRA-RITE paper
# reports 5 to 8 % over Adam for LoRA-RITE.
PUBLISHED = {
  'adamw': (2.26, 8732),
  'lora_pro': (1.36, 8866),
  'lora_rite': (1.64, 8872),
  'reflora': (2.00, 8864),
  'reflora_s': (2.23, 8732),
}


def table(rows: list[dict]) -> str:
  """Markdown with one table per model and rank, with the published ratios."""
  text = []
  for name, rank in dict.fromkeys((r['model'], r['rank']) for r in rows):
    text += [
      f'\n{name}, rank {rank}\n',
      '| method | time of a step / adamw | memory / adamw | state / adamw '
      '| published: time | memory |',
      '|' + ' --- |' * 6,
    ]
    for row in rows:
      if (row['model'], row['rank']) == (name, rank):
        text.append(_line(row))
  return '\n'.join(text) + '\n'


def _line(row: dict) -> str:
  low, high = row['quartiles']
  published = '  |  |'
  if row['method'] in PUBLISHED:
    speed, megabytes = PUBLISHED[row['method']]
    best, least = PUBLISHED[BASELINE]
    published = f' {best / speed:.2f} | {megabytes / least:.3f} |'
  return (
    f'| {row["method"]} | {row["ratio"]:.3f} [{low:.3f}, {high:.3f}] '
    f'| {row["memory_ratio"]:.3f} | {row["state_ratio"]:.2f} |{published}'
  )


def picture(rows: list[dict], path: pathlib.Path) -> None:
  """Plots ratios with quartiles, one panel per model and rank."""

  def bars(chosen):
    def draw(axes, ink):
      drawing.plain(axes, ink)
      heights = range(len(chosen))[::-1]
      for height, row in zip(heights, chosen, strict=True):
        axes.plot(row['quartiles'], [height] * 2, color=ink.accent, alpha=0.4,
                  linewidth=5, solid_capstyle='round')  # fmt: skip
        axes.plot([row['ratio']], [height], 'o', color=ink.accent)
        if row['method'] in PUBLISHED:
          speed = PUBLISHED[row['method']][0]
          there = PUBLISHED[BASELINE][0] / speed
          axes.plot([there], [height], 'd', color=ink.second)
      axes.set_xlabel(
        'time of a step / adamw (diamonds: published, RefLoRA paper)'
      )
      axes.set_yticks(heights, [row['method'] for row in chosen])
      axes.grid(axis='y', visible=False)
      axes.grid(axis='x', color=ink.line, linewidth=0.7)

    return draw

  panels = collections.defaultdict(list)
  for row in rows:
    panels[f'{row["model"]}, rank {row["rank"]}'].append(row)
  tallest = max(len(chosen) for chosen in panels.values())
  draws = {title: bars(chosen) for title, chosen in panels.items()}
  drawing.to_png(draws, (6.0, 0.8 + 0.28 * tallest), path)


def _rows(folder: pathlib.Path) -> list[dict]:
  text = (folder / 'result.json').read_text(encoding='utf-8')
  return json.loads(text)['rows']


def sections(folder: pathlib.Path) -> dict[str, str]:
  return {'table': table(_rows(folder))}


def draw(folder: pathlib.Path) -> None:
  picture(_rows(folder), folder / 'result.png')


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
