"""Writes the table of docs/zero_shot.md from the results of a run."""

import argparse
import json
import pathlib
import re

from experiments.zero_shot import questions

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'zero_shot.md'
METRICS = ('accuracy', 'accuracy_per_token', 'accuracy_per_byte')
BEGIN, END = '<!-- table -->\n', '<!-- end of table -->'


def cell(result):
  score, (low, high) = result['score'], result['interval']
  return f'{100 * score:.1f} [{100 * low:.1f}, {100 * high:.1f}]'


def table(scores, agreement):
  """A table with a row for each set that has scores."""
  lines = [
    '| set | questions | accuracy | per token | per byte '
    '| agreeing with torch | largest difference, nats |',
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  for name, title in questions.TITLES.items():
    if name not in scores:
      continue
    cells = [cell(scores[name][metric]) for metric in METRICS]
    cells += ['not compared', '']
    if found := agreement.get(name):
      same = found['questions'] - found['differ']
      cells[-2:] = [
        f'{same} of {found["questions"]}',
        f'{found["largest_difference"]:.1e}',
      ]
    count = scores[name]['num_examples']
    lines.append(f'| {title} | {count} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='runs/zero_shot', type=pathlib.Path)
  args = parser.parse_args(argv)
  scores, agreement = (
    json.loads((args.out / name).read_text(encoding='utf-8'))
    if (args.out / name).exists()
    else {}
    for name in ('scores.json', 'agreement.json')
  )
  text = PAGE.read_text(encoding='utf-8')
  made = BEGIN + table(scores, agreement) + END
  pattern = re.escape(BEGIN) + '.*' + re.escape(END)
  PAGE.write_text(
    re.sub(pattern, lambda _: made, text, flags=re.S), encoding='utf-8'
  )
  print(f'{PAGE}: {len(scores)} sets, {len(agreement)} compared')


if __name__ == '__main__':
  main()
