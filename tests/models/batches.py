"""Batches and adapters for the tests of models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.data.seq2seq_batching import EncodedPair
from lora_opt.models.pretrained.assemble import disassemble


@functools.cache
def jitted(model, name):
  """A compiled method of a model; every test shares the compilation."""
  return jax.jit(getattr(model, name))


def losses_of(model, batch, lora=None):
  """Losses of a batch under the base model, or with an adapter."""
  return np.asarray(jitted(model, 'token_losses')(model.base, lora, batch))


@functools.cache
def gradients(model):
  """Compiled function from base, adapter and batch to losses and gradients.

  It returns the losses, and the gradients of their sum with respect to base
  and adapter.
  """

  def total(base, lora, batch):
    losses = model.token_losses(base, lora, batch)
    return losses.sum(), losses

  def run(base, lora, batch):
    both = jax.grad(total, argnums=(0, 1), has_aux=True)
    (base_gradient, lora_gradient), losses = both(base, lora, batch)
    return losses, base_gradient, lora_gradient

  return jax.jit(run)


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


def pair_batch(start_id, *pairs, lengths=None):
  """A batch of unpacked pairs of ids, inputs and targets, padded."""
  pairs = [
    EncodedPair(*(np.array(ids, np.int32) for ids in pair), start_id)
    for pair in pairs
  ]
  lengths = lengths or tuple(
    map(max, zip(*(p.sizes for p in pairs), strict=True))
  )
  return _stack([EncodedPair.row([pair], lengths) for pair in pairs])


def packed_pairs(start_id, *pairs):
  """The same pairs in a single row."""
  pairs = [
    EncodedPair(*(np.array(ids, np.int32) for ids in pair), start_id)
    for pair in pairs
  ]
  lengths = tuple(map(sum, zip(*(p.sizes for p in pairs), strict=True)))
  return _stack([EncodedPair.row(pairs, lengths)])


def _stack(rows):
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def random_adapter(model, seed=0, spread=0.1):
  """An adapter with neither factor zero."""
  random = np.random.default_rng(seed)

  def noise(leaf):
    return jnp.asarray(spread * random.standard_normal(leaf.shape), leaf.dtype)

  return jax.tree.map(noise, jax.eval_shape(model.init, jax.random.key(0)))


def hugging_face_tensors(model):
  """The base weights under the names and in the orientation of their family."""
  return disassemble(model.base, model.family.names)


def paths(tree):
  """Pairs of path and leaf."""

  def is_spec(x):
    return isinstance(x, jax.sharding.PartitionSpec)

  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree.flatten_with_path(tree, is_leaf=is_spec)[0]
  ]
