"""Makes preference pairs of answers from multiple-choice questions.

  python -m experiments.preferences.pairs DATA_DIR/arc_easy OUT_DIR/arc_pairs

writes train.jsonl and test.jsonl for configs/tasks/preferences.gin. For every
question, its right choice is the chosen answer, and the right choice of another
question, drawn with `--seed`, is the rejected one. Test questions that are also
in train are left out.
"""

import argparse
import json
import pathlib
import random


def pairs(rows: list[dict], rng: random.Random) -> list[dict[str, str]]:
  """Makes preferences from rows with question, choices and answer.

  >>> rows = [
  ...   {'question': 'Sky?', 'choices': ['red', 'blue'], 'answer': 1},
  ...   {'question': 'Sum?', 'choices': ['four', 'five'], 'answer': 0},
  ... ]
  >>> pairs(rows, random.Random(0))[0]
  {'prompt': 'Sky?', 'chosen': 'blue', 'rejected': 'four'}
  """
  right = [row['choices'][row['answer']] for row in rows]
  found = []
  for row, chosen in zip(rows, right, strict=True):
    rejected = chosen
    while rejected == chosen:
      rejected = rng.choice(right)
    prompt = row['question']
    found.append({'prompt': prompt, 'chosen': chosen, 'rejected': rejected})
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('source', type=pathlib.Path)
  parser.add_argument('target', type=pathlib.Path)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  options.target.mkdir(parents=True, exist_ok=True)
  rng, seen = random.Random(options.seed), set()
  for split in ('train', 'test'):
    lines = (options.source / f'{split}.jsonl').read_text('utf-8').splitlines()
    rows = pairs([json.loads(line) for line in lines], rng)
    kept = [row for row in rows if row['prompt'] not in seen]
    seen |= {row['prompt'] for row in rows}
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in kept)
    (options.target / f'{split}.jsonl').write_text(text, 'utf-8')
    print(f'{split}: {len(kept)} pairs, {len(rows) - len(kept)} left out')


if __name__ == '__main__':
  main()
