"""Packed rows mean to a model what the examples alone mean to it."""

import functools

import jax
import numpy as np
import pytest

from lora_opt.data import tasks
from lora_opt.models.random_model import random_model

pytestmark = pytest.mark.usefixtures('fast_compile')

ROWS = [
  {
    'question': 'Q' * n,
    'choices': ['yes' * n, 'no', 'perhaps'],
    'answer': n % 3,
  }
  for n in (1, 4, 2, 7, 3)
]


@pytest.fixture(scope='module')
def losses():
  """(model, jitted function of a batch: loss of each position)."""
  model = random_model(num_layers=1)
  return model, jax.jit(functools.partial(model.token_losses, model.base, None))


def alone(model, loss, prompt, completion):
  """Loss of a completion, in a row of its own of one fixed length."""
  ids = np.array(prompt + completion, np.int32)
  size, padding = len(ids) - 1, (0, 64 - len(ids) + 1)
  batch = {
    'tokens': np.pad(ids[:-1], padding)[None],
    'targets': np.pad(ids[1:], padding)[None],
    'positions': np.pad(np.arange(size, dtype=np.int32), padding)[None],
    'segment_ids': np.pad(np.ones(size, np.int32), padding)[None],
    'weights': np.ones((1, 64), np.float32),
  }
  return float(np.sum(loss(batch)[0, len(prompt) - 1 : size]))


@pytest.mark.parametrize('chat', [True, False])
def test_branches_score_like_separate_rows(losses, chat):
  model, loss = losses
  task = tasks.MultipleChoice(name='toy', train=ROWS, eval=ROWS, chat=chat)
  scores = np.zeros((len(ROWS), 3))
  for batch in task.choice_batches(model.tokenizer, batch_size=1):
    found = np.asarray(loss(batch.arrays)) * batch.arrays['weights']
    np.add.at(scores, (batch.example, batch.choice), found)
  for index, example in enumerate(task.examples('eval')):
    prompt, choices = task.encode_choices(example, model.tokenizer)
    expected = [alone(model, loss, prompt, choice) for choice in choices]
    # float32 sums of at most 30 terms of size 6.
    np.testing.assert_allclose(scores[index], expected, rtol=1e-5)


def test_packed_rows_lose_like_separate_rows(losses):
  model, loss = losses
  task = tasks.MultipleChoice(name='toy', train=ROWS, eval=ROWS)
  batches = task.eval_batches(model.tokenizer, length=256, batch_size=1)
  total = sum(float(np.sum(loss(b) * b['weights'])) for b in batches)
  expected = sum(
    alone(model, loss, *task.encode(example, model.tokenizer))
    for example in task.examples('eval')
  )
  np.testing.assert_allclose(total, expected, rtol=1e-5)
