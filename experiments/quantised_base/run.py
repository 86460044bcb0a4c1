"""What does a frozen base lose with 8 and with 4 bits?

Loads SmolLM2-135M with its projections in float32, int8, int4 and nf4, and
prints the bytes and the loss on real texts, with intervals of the differences.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from lora_opt.models import smollm2_135m

KINDS = (None, 'int8', 'int4', 'nf4')
ROWS, LENGTH = 8, 64


def read_texts(file, count):
  """Questions with their right answers, as in configs/tasks/arc_easy.gin."""
  rows = map(json.loads, file.read_text(encoding='utf-8').splitlines())
  texts = (
    f'Question: {row["question"]}\nAnswer: {row["choices"][row["answer"]]}'
    for row in rows
  )
  return [text for _, text in zip(range(count), texts, strict=False)]


def batches(tokenizer, texts):
  """Yields batches with one text per row, cut to LENGTH."""
  ids = [tokenizer.encode(text)[: LENGTH + 1] for text in texts]
  for first in range(0, len(ids), ROWS):
    tokens = np.zeros((ROWS, LENGTH + 1), np.int32)
    weights = np.zeros((ROWS, LENGTH), np.float32)
    for row, text in enumerate(ids[first : first + ROWS]):
      tokens[row, : len(text)] = text
      weights[row, : len(text) - 1] = 1
    yield {
      'tokens': tokens[:, :-1],
      'targets': tokens[:, 1:],
      'weights': weights,
      'positions': np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
      'segment_ids': weights.astype(np.int32),
    }


def measure(kind, texts):
  """Bytes of the base, and summed loss and tokens of every text."""
  model = smollm2_135m(quantize=kind)
  losses = jax.jit(lambda base, batch: model.token_losses(base, None, batch))
  sums, counts = [], []
  for batch in batches(model.tokenizer, texts):
    sums.append(np.asarray(losses(model.base, batch)).sum(1))
    counts.append(batch['weights'].sum(1))
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.base))
  sums, counts = (np.concatenate(x)[: len(texts)] for x in (sums, counts))
  return held, sums, counts


def interval(differences, counts, seed=0):
  """95 % interval of a difference in nats per token, by resampling texts."""
  random = np.random.default_rng(seed)
  picks = random.integers(0, len(counts), (2000, len(counts)))
  means = differences[picks].sum(1) / counts[picks].sum(1)
  return np.quantile(means, [0.025, 0.975]).tolist()


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('data', type=pathlib.Path, help='arc_easy/train.jsonl')
  parser.add_argument('--count', type=int, default=300, help='texts')
  arguments = parser.parse_args(argv)
  texts = read_texts(arguments.data, arguments.count)
  exact = None
  for kind in KINDS:
    held, sums, counts = measure(kind, texts)
    exact = sums if exact is None else exact
    change = sums - exact
    low, high = interval(change, counts)
    print(
      f'| {kind or "float32"} | {held / 1e6:.0f} MB | '
      f'{sums.sum() / counts.sum():.4f} | '
      f'{change.sum() / counts.sum():+.4f} [{low:+.4f}, {high:+.4f}] |',
      flush=True,
    )
  print(f'{len(texts)} texts, {int(counts.sum())} tokens')


if __name__ == '__main__':
  main()
