"""Text for tiny language models: sentences, encoded letter by letter."""

import numpy as np

SENTENCES = (
  'the optimizer sees the product of two factors.',
  'every factorisation of it is as good as the next.',
  'a step that depends on the choice wastes the rank.',
  'balanced factors and one metric repair this.',
)
VOCABULARY = 64
LENGTH = 32


def encode(sentence: str) -> list[int]:
  """Letters as numbers from 1, so that 0 stays free for padding."""
  return [ord(letter) % 32 + 1 for letter in sentence]


def embedding(shape: tuple[int, int]) -> np.ndarray:
  """A random embedding, large enough for a random network to predict with."""
  return np.random.default_rng(0).normal(size=shape).astype('float32') * 0.3


def batches(count: int, size: int = 8, seed: int = 0) -> list[np.ndarray]:
  """`count` arrays (size, LENGTH) of tokens cut from the sentences."""
  rng = np.random.default_rng(seed)
  tokens = np.array(encode(' '.join(SENTENCES)))
  starts = rng.integers(0, len(tokens) - LENGTH, (count, size))
  return [tokens[s[:, None] + np.arange(LENGTH)] for s in starts]
