"""all-MiniLM-L6-v2, the real weights, against transformers' embeddings."""

import json
import pathlib

import jax
import numpy as np
import pytest

from lora_opt.data import tasks
from lora_opt.models import LoraConfig, minilm_l6

GOLDEN = pathlib.Path(__file__).with_name('minilm_reference.json')


@pytest.fixture(scope='module')
def minilm():
  return minilm_l6(LoraConfig(rank=8))


@pytest.fixture(scope='module')
def reference():
  """Sentences and pairs; ids, types and mean of the last states of torch."""
  return json.loads(GOLDEN.read_text(encoding='utf-8'))


def test_ids_and_types_of_sentences_and_pairs(minilm, reference):
  for text, expected in reference.items():
    first, _, second = text.partition('|')
    found = minilm.tokenizer.encode_texts(*filter(None, (first, second)))
    assert found.ids == expected['ids']
    assert found.types == expected['types']


def test_embeddings(minilm, reference):
  pairs = [text for text in reference if not text.endswith('|')]
  rows = [dict(zip('ab', pair.split('|'), strict=True)) for pair in pairs]
  rows = [row | {'label': 0} for row in rows]
  task = tasks.Classification(
    name='pairs',
    train=rows,
    eval=rows,
    prompt='',
    texts=('a', 'b'),
    label_names=('no', 'yes'),
  )
  run = jax.jit(minilm.pooled)
  expected = [reference[pair]['mean'] for pair in pairs]
  batches = task.label_batches(minilm.tokenizer, batch_size=2, longest=64)
  seen = []
  for batch in batches:
    pooled = run(minilm.base, None, batch.arrays)[:, 0]
    for number, row in zip(batch.example, pooled, strict=True):
      if number >= 0:
        np.testing.assert_allclose(row[:8], expected[number], atol=1e-5)
        seen.append(int(number))
  assert sorted(seen) == list(range(len(rows)))


def test_it_is_the_model_it_says(minilm):
  frozen = sum(leaf.size for leaf in jax.tree.leaves(minilm.base))
  assert frozen == 22_713_216 - 384 * 385  # without BERT's own pooler
  assert minilm.config.pooling == 'mean'
  head = minilm.init(jax.random.key(0))['head']
  assert head['out']['kernel'].shape == (384, 2)
