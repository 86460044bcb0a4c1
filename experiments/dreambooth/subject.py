"""Writes the pictures of the subject: five to learn, ten to validate on.

python -m experiments.dreambooth.subject FOLDER
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from experiments.dreambooth import digits

# The subject is learned on some papers and validated on the others.
TRAIN = ('red', 'blue', 'yellow', 'white', 'purple')
EVAL = ('green', 'black') * 5


def write(folder: pathlib.Path, papers: Sequence[str], seed: int) -> None:
  """Writes pictures with metadata.jsonl, in the form of sources.ImageFolder."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  lines = []
  for number, paper in enumerate(papers):
    name = f'{number}.png'
    Image.fromarray(digits.draw_subject(paper, rng)).save(folder / name)
    said = f'a x {digits.NAMES[digits.SUBJECT_DIGIT]} on {paper}'
    lines.append(json.dumps({'file_name': name, 'text': said}) + '\n')
  (folder / 'metadata.jsonl').write_text(''.join(lines), encoding='utf-8')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder', type=pathlib.Path)
  folder = parser.parse_args().folder
  write(folder / 'train', TRAIN, 1)
  write(folder / 'eval', EVAL, 2)


if __name__ == '__main__':
  main()
