"""Batches and adapters for the tests of models."""

import jax
import numpy as np


def row_batch(*rows, length=None):
  """A batch of unpacked rows of ids, padded on the right."""
  length = length or max(map(len, rows))

  def fill(row, value):
    return np.pad(
      np.asarray(row, np.int32), (0, length - len(row)), constant_values=value
    )

  tokens = np.stack([fill(row, 0) for row in rows])
  return {
    'tokens': tokens,
    'targets': np.stack([fill(row[1:], 0) for row in rows]),
    'positions': np.stack([fill(range(len(row)), 0) for row in rows]),
    'segment_ids': np.stack([fill([1] * len(row), 0) for row in rows]),
  }


def random_adapter(model, seed=0):
  """An adapter whose lora_b is not zero."""
  lora = model.init(jax.random.key(seed))
  leaves, structure = jax.tree.flatten(lora)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noise = [
    0.1 * jax.random.normal(key, leaf.shape, leaf.dtype)
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, noise)
