"""The contract of CausalLM: packing, branches, padding, cache, adapters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.batches import random_adapter, row_batch

FIRST, SECOND, THIRD = [5, 6, 7, 8, 9], [20, 21, 22], [30, 31, 32, 33]


def losses(model, batch, lora=None):
  """Losses of a batch of the base model, or with an adapter."""
  return np.asarray(model.token_losses(model.base, lora, batch))


def test_packed_segments_equal_separate_rows(tiny):
  separate = losses(tiny, row_batch(FIRST, SECOND))
  packed = row_batch(FIRST + SECOND, length=10)
  packed['positions'][0, 5:8] = range(3)
  packed['segment_ids'][0, 5:8] = 2
  packed['targets'][0, 4] = 0
  together = losses(tiny, packed)[0]
  np.testing.assert_allclose(together[:5], separate[0], rtol=1e-5)
  np.testing.assert_allclose(together[5:8], separate[1, :3], rtol=1e-5)


def test_branches_equal_separate_rows(tiny):
  separate = losses(tiny, row_batch(FIRST + SECOND, FIRST + THIRD))
  branched = row_batch(FIRST + SECOND + THIRD)
  branched['positions'][0, 8:] = range(5, 9)
  branched['branches'] = np.array([[0] * 5 + [1] * 3 + [2] * 4], np.int32)
  branched['targets'][0, 7] = 0
  together = losses(tiny, branched)[0]
  np.testing.assert_allclose(together[:8], separate[0, :8], rtol=1e-5)
  np.testing.assert_allclose(together[8:], separate[1, 5:], rtol=1e-5)


def test_padding_has_no_effect(tiny):
  alone = losses(tiny, row_batch(FIRST))[0]
  padded = row_batch(FIRST, length=11)
  padded['tokens'][0, 5:] = 77
  np.testing.assert_allclose(losses(tiny, padded)[0, :5], alone, rtol=1e-5)
  assert np.isfinite(losses(tiny, padded)).all()


@pytest.mark.parametrize('loss_rows', [1, 2, 5, 6, 64])
def test_losses_and_their_gradient_are_those_of_full_logits(tiny, loss_rows):
  model = dataclasses.replace(tiny, loss_rows=loss_rows)
  batch, lora = row_batch(FIRST, SECOND), random_adapter(tiny)
  weights = jnp.array([[1, 2, 3, 4, 0], [0.5, 1, 0, 0, 0]])

  def chunked(lora):
    return (model.token_losses(model.base, lora, batch) * weights).sum()

  def full(lora):
    logits = jax.nn.log_softmax(model.logits(model.base, lora, batch))
    targets = batch['targets'][..., None]
    picked = jnp.take_along_axis(logits, targets, axis=-1)
    return -(picked[..., 0] * weights).sum()

  actual, expected = (
    jax.value_and_grad(chunked)(lora),
    jax.value_and_grad(full)(lora),
  )
  for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
