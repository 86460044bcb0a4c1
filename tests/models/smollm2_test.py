"""The default model against numbers of an independent forward pass."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests.models.batches import row_batch

REFERENCE = json.loads(
  pathlib.Path(__file__)
  .with_name('smollm2_135m_reference.json')
  .read_text(encoding='utf-8')
)
CASES = REFERENCE['cases']


@pytest.fixture(scope='module')
def outputs(smollm2):
  """Logits and losses of all cases in one padded batch."""
  batch = row_batch(*(case['ids'] for case in CASES))
  logits = jax.jit(smollm2.logits)(smollm2.base, None, batch)
  losses = jax.jit(smollm2.token_losses)(smollm2.base, None, batch)
  return np.asarray(logits), np.asarray(losses)


@pytest.mark.parametrize('index', range(len(CASES)))
def test_tokenizer_reproduces_ids(smollm2, index):
  case = CASES[index]
  assert smollm2.tokenizer.encode(case['text']) == case['ids']


@pytest.mark.parametrize('index', range(len(CASES)))
def test_model_reproduces_reference(outputs, index):
  case = CASES[index]
  count = len(case['ids'])
  logits, losses = outputs[0][index, :count], outputs[1][index, : count - 1]
  expected = np.array(case['next_token_logprob'])
  np.testing.assert_allclose(-losses, expected, rtol=0, atol=2e-3)
  np.testing.assert_allclose(
    np.exp(losses.mean()), case['perplexity'], rtol=1e-4
  )
  last = case['last_position_logits']
  np.testing.assert_allclose(
    logits[-1][[int(i) for i in last]], list(last.values()), rtol=0, atol=2e-3
  )
  assert logits.argmax(-1).tolist() == case['argmax']
