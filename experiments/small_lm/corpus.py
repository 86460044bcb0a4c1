"""A vocabulary of 2048 tokens, and the texts as windows of token ids.

    python -m experiments.small_lm.corpus --data DATA WORK

writes WORK/tokenizer.json and WORK/windows.npz.
"""

import argparse
import hashlib
import json
import pathlib
import platform
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from experiments.small_lm import text
from lora_opt import writing

VOCABULARY, LENGTH = 2048, 64
END = '<end>'
# At most this many held-out windows are used, evenly spread.
HELD_OUT = 2048


class Windows(NamedTuple):
  """Windows of LENGTH + 1 ids: the inputs, and the targets one to the right."""

  train: np.ndarray  # (windows, LENGTH + 1) uint16
  held_out: np.ndarray  # (windows, LENGTH + 1) uint16


def train_tokenizer(
  documents: Iterable[str], size: int = VOCABULARY
) -> tokenizers.Tokenizer:
  """Trains byte pairs over bytes. Every text has ids; each digit is a token."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[END],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(documents, trainer)
  return tokenizer


def pack(
  tokenizer: tokenizers.Tokenizer, documents: Sequence[str]
) -> np.ndarray:
  """Joins all documents, with END after each, and cuts them into windows.

  Returns:
    (windows, LENGTH + 1) uint16; the last id of a window is the first of the
    next.
  """
  end = tokenizer.token_to_id(END)
  ids = [
    np.array([*encoding.ids, end], np.uint16)
    for encoding in tokenizer.encode_batch(list(documents))
  ]
  row = np.concatenate(ids)
  count = (len(row) - 1) // LENGTH
  if count < 1:
    raise ValueError(
      f'{len(row)} tokens are less than a window of {LENGTH + 1}: more text'
    )
  starts = LENGTH * np.arange(count)[:, None]
  return row[starts + np.arange(LENGTH + 1)]


def evenly(windows: np.ndarray, count: int) -> np.ndarray:
  """At most `count` of the windows, evenly spread."""
  if len(windows) <= count:
    return windows
  return windows[np.arange(count) * len(windows) // count]


def build(data: pathlib.Path, work: pathlib.Path) -> dict[str, Windows]:
  """Makes the vocabulary and all windows, and writes both to `work`."""
  texts = {'pretraining': text.pretraining(data)}
  texts |= {name: domain(data) for name, domain in text.DOMAINS.items()}
  tokenizer = train_tokenizer(texts['pretraining'][0])
  found, facts = {}, {'python': platform.python_version()}
  for name, (train, held_out) in texts.items():
    windows = Windows(
      pack(tokenizer, train), evenly(pack(tokenizer, held_out), HELD_OUT)
    )
    found[name] = windows
    letters = sum(len(d.encode()) for d in train)
    facts[name] = {
      'train': len(windows.train),
      'held_out': len(windows.held_out),
      'bytes_a_token': round(letters / LENGTH / len(windows.train), 2),
    }
  facts['digest'] = digest(w for pair in found.values() for w in pair)
  work.mkdir(parents=True, exist_ok=True)
  writing.write_text(work / 'tokenizer.json', tokenizer.to_str())
  with writing.draft(work / 'windows.npz') as part, part.open('wb') as file:
    np.savez(
      file,
      **{
        f'{name}/{field}': array
        for name, windows in found.items()
        for field, array in windows._asdict().items()
      },
    )
  writing.write_text(work / 'corpus.json', json.dumps(facts, indent=1) + '\n')
  return found


def load(work: pathlib.Path) -> dict[str, Windows]:
  """Reads what `build` wrote.

  Raises:
    FileNotFoundError: `build` has not run yet.
  """
  file = work / 'windows.npz'
  if not file.exists():
    raise FileNotFoundError(
      f'{file}: first python -m experiments.small_lm.corpus --data DATA {work}'
    )
  with np.load(file) as arrays:
    names = dict.fromkeys(key.rpartition('/')[0] for key in arrays)
    return {
      name: Windows(*(arrays[f'{name}/{f}'] for f in Windows._fields))
      for name in names
    }


def digest(arrays: Iterable[np.ndarray]) -> str:
  """Twelve hexadecimal digits of a SHA-256 over shapes, types and bits."""
  found = hashlib.sha256()
  for array in arrays:
    found.update(f'{array.dtype}{array.shape}'.encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()[:12]


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('work', type=pathlib.Path, metavar='WORK')
  args = parser.parse_args(argv)
  build(args.data, args.work)
  print((args.work / 'corpus.json').read_text(encoding='utf-8'))


if __name__ == '__main__':
  main()
