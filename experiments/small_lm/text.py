"""The documents for pretraining, and the domains that are kept out of it.

They come from data sets of JSON lines, each in its own folder, and from the
sources of Python's standard library, always in the same order.
"""

import json
import pathlib
import sysconfig
from collections.abc import Iterator

# Data sets for pretraining, with the fields that make up a document.
PRETRAINING = {
  'arc_challenge': ('question', 'choices'),
  'arc_easy': ('question', 'choices'),
  'boolq': ('question', 'answer'),
  'cola': ('sentence',),
  'hellaswag': ('question', 'choices'),
  'mrpc': ('sentence1', 'sentence2'),
  'openbookqa': ('question', 'choices'),
  'piqa': ('question', 'choices'),
  'siqa': ('question', 'choices'),
  'sst2': ('sentence',),
  'stsb': ('sentence1', 'sentence2'),
  'wnli': ('sentence1', 'sentence2'),
}
SUPER_NI = ('task126', 'task141', 'task143', 'task151', 'task152')
# One in this many documents of the pretraining text is held out.
HELD_OUT_EVERY = 16

Split = tuple[list[str], list[str]]  # to train on, held out


def pretraining(data: pathlib.Path) -> Split:
  """Text of the sets in PRETRAINING, both splits; every 16th is held out."""
  documents = [
    document
    for name, fields in PRETRAINING.items()
    for split in ('train', 'test')
    for document in _documents(data / name / f'{split}.jsonl', fields)
  ]
  # Sets repeat sentences, and held-out text must not be in training.
  return _dealt(list(dict.fromkeys(documents)), HELD_OUT_EVERY)


def gsm8k(data: pathlib.Path) -> Split:
  """Problems of school mathematics with their solutions, its own splits."""
  fields = ('question', 'answer')
  train, test = (
    list(_documents(data / 'gsm8k' / f'{split}.jsonl', fields))
    for split in ('train', 'test')
  )
  return train, test


def super_ni(data: pathlib.Path) -> Split:
  """Inputs and outputs of five tasks; every second one is held out."""
  documents = [
    document
    for task in SUPER_NI
    for split in ('train', 'test')
    for document in _documents(
      data / 'super_ni' / f'{task}.{split}.jsonl', ('input', 'output')
    )
  ]
  return _dealt(list(dict.fromkeys(documents)), 2)


def python(data: pathlib.Path) -> Split:
  """Modules of the standard library of this Python; every 8th is held out."""
  del data
  folder = pathlib.Path(sysconfig.get_paths()['stdlib'])
  files = sorted(folder.glob('*.py'))
  if not files:
    raise FileNotFoundError(
      f'{folder}: no sources of the standard library; take a Python that has '
      'them, or leave the domain python out'
    )
  texts = [file.read_text(encoding='utf-8', errors='ignore') for file in files]
  return _dealt(texts, 8)


# Kept out of pretraining.
DOMAINS = {'gsm8k': gsm8k, 'super_ni': super_ni, 'python': python}


def _documents(file: pathlib.Path, fields: tuple[str, ...]) -> Iterator[str]:
  if not file.exists():
    # Some sets have only one split; a missing set is an error.
    if file.parent.is_dir():
      return
    raise FileNotFoundError(
      f'{file.parent}: no such set; --data must be the folder of the sets'
    )
  with file.open(encoding='utf-8') as lines:
    for line in lines:
      row = json.loads(line)
      yield '\n'.join(_text(row[field]) for field in fields)


def _text(value) -> str:
  """A field as text; lists have one line for each item.

  >>> _text(['a', 'b']), _text(True), _text(' c ')
  ('a\\nb', 'yes', 'c')
  """
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list):
    return '\n'.join(map(_text, value))
  return str(value).strip()


def _dealt(documents: list[str], every: int) -> Split:
  """Splits off every `every`-th document, starting with the first."""
  train = [d for i, d in enumerate(documents) if i % every]
  return train, documents[::every]
