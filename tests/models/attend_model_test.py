"""Whole models, their attention computed in each way, on packed rows."""

import dataclasses

import jax
import numpy as np
import pytest

from lora_opt.models import (
  LoraConfig,
  random_encoder,
  random_model,
  random_seq2seq,
)
from tests.models.batches import (
  packed_pairs,
  random_adapter,
  row_batch,
)

pytestmark = pytest.mark.usefixtures('fast_compile')

LORA = LoraConfig(rank=2)
FIRST, SECOND = range(3, 33), range(40, 60)
GEMMA3 = {
  'qk_norm': True,
  'attention_scale': 0.5,
  'window': 9,
  'windowed_layers': (True, False),
  'local_rope_theta': 10.0,
}


def packed(branches=False):
  batch = row_batch([*FIRST, *SECOND], length=60)
  own = slice(len(FIRST), len(FIRST) + len(SECOND))
  batch['positions'][0, own] = range(len(SECOND))
  batch['segment_ids'][0, own] = 2
  batch['weights'] = np.array(batch['segment_ids'] > 0, np.float32)
  if branches:
    batch['branches'] = np.zeros((1, 60), np.int32)
    batch['branches'][0, 10:20], batch['branches'][0, 20:30] = 1, 2
    batch['positions'][0, 20:30] = range(10, 20)
  return batch


def decoder():
  return random_model(LORA, **GEMMA3)


def labelled():
  row = packed()
  return {
    'tokens': row['tokens'],
    'token_types': np.zeros_like(row['tokens']),
    'positions': row['positions'],
    'segment_ids': row['segment_ids'],
    'labels': np.array([[0, 1]], np.float32),
    'weights': np.ones((1, 2), np.float32),
  }


def pairs():
  first, second = list(FIRST), list(SECOND)
  return packed_pairs(258, (first, second), (second, first[:9]))


CASES = {
  'decoder': (decoder, packed),
  'decoder with branches': (decoder, lambda: packed(branches=True)),
  'encoder': (lambda: random_encoder(LORA, num_layers=1), labelled),
  'encoder-decoder': (lambda: random_seq2seq(LORA, num_layers=1), pairs),
}


@pytest.mark.parametrize(
  ('implementation', 'case'),
  [
    ('blockwise', 'decoder'),
    pytest.param('splash', 'decoder', marks=pytest.mark.slow),
    *[
      pytest.param('blockwise', case, marks=pytest.mark.long)
      for case in ('decoder with branches', 'encoder', 'encoder-decoder')
    ],
  ],
)
def test_losses_and_gradients_are_those_of_the_plain_way(implementation, case):
  make, batch = CASES[case]
  model, batch = make(), batch()
  lora = random_adapter(model)

  def results(attention):
    other = dataclasses.replace(model, attention=attention)
    return jax.jit(
      jax.value_and_grad(
        lambda lora: other.token_losses(other.base, lora, batch).sum()
      )
    )(lora)

  pairs = zip(
    *map(jax.tree.leaves, (results(implementation), results('plain'))),
    strict=True,
  )
  for a, e in pairs:
    assert np.isfinite(a).all()
    # Sums over some hundred positions, in another order. T5 does not scale its
    # scores: a change of its weights by 1e-7 changes gradients by 5e-5.
    limit = 2e-4 if case == 'encoder-decoder' else 2e-5
    np.testing.assert_allclose(a, e, rtol=0, atol=limit * abs(e).max())


def test_a_long_prompt_is_read_in_blocks():
  model = random_model(num_layers=1)
  blockwise = dataclasses.replace(model, attention='blockwise')
  tokens = np.tile(np.arange(3, 43, dtype=np.int32), (2, 1))
  valid = np.ones((2, 40), bool)
  valid[1, :15] = False

  def first_and_second(model):
    logits, cache = model.start_decoding(model.base, None, tokens, valid, 2)
    step, _ = model.decode_step(
      model.base, None, cache, np.array([5, 6], np.int32)
    )
    return logits, step

  results = [
    jax.jit(lambda m=m: first_and_second(m))() for m in (blockwise, model)
  ]
  for a, e in zip(*results, strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * abs(e).max())
