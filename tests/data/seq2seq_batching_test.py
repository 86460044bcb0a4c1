"""Pairs for encoder-decoders: layout, conventions, and what a model sees."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lora_opt.data import batching, seq2seq_batching, tasks
from lora_opt.data.seq2seq_batching import EncodedPair
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.random_model import random_seq2seq

pytestmark = pytest.mark.usefixtures('fast_compile')

ROWS = [
  {
    'question': 'Q' * n,
    'choices': ['yes' * n, 'no', 'perhaps'],
    'answer': n % 3,
  }
  for n in (1, 4, 2, 7, 3)
]
TASK = tasks.MultipleChoice(
  name='toy', train=ROWS, eval=ROWS, chat=False, prompt='{question}?'
)
END, START = 257, 258


@pytest.fixture(scope='module')
def losses():
  """(model, jitted function of a batch: loss of each position)."""
  model = random_seq2seq(num_layers=1, num_decoder_layers=1)
  return model, jax.jit(functools.partial(model.token_losses, model.base, None))


def alone(loss, prompt, completion):
  """Loss of a completion, in a row of its own of fixed lengths."""
  pair = seq2seq_batching.EncodedPair(
    np.array(prompt), np.array(completion), START
  )
  row = seq2seq_batching.EncodedPair.row([pair], (16, 32))
  batch = {name: array[None] for name, array in row.items()}
  return float(np.sum(loss(batch) * batch['weights']))


def test_prompt_and_completion_end_and_the_decoder_reads_one_place_behind():
  rows = [{'question': 'ab', 'answer': 'xy'}, {'question': 'c', 'answer': 'z'}]
  task = tasks.Generation(name='toy', train=rows, eval=rows, chat=False)
  (batch,) = task.eval_batches(
    Tokenizer.byte_level(), length=(7, 6), batch_size=1, form='encoder_decoder'
  )
  expected = {
    'encoder_tokens': [97, 98, END, 99, END, 0, 0],
    'encoder_segment_ids': [1, 1, 1, 2, 2, 0, 0],
    'tokens': [START, 120, 121, START, 122, 0],
    'targets': [120, 121, END, 122, END, 0],
    'segment_ids': [1, 1, 1, 2, 2, 0],
    'weights': [1, 1, 1, 1, 1, 0],
  }
  assert {name: array[0].tolist() for name, array in batch.items()} == expected


def test_packed_pairs_lose_like_separate_ones(losses):
  model, loss = losses
  batches = list(
    TASK.eval_batches(
      model.tokenizer, length=(32, 48), batch_size=1, form='encoder_decoder'
    )
  )
  assert max(batch['segment_ids'].max() for batch in batches) > 1
  total = sum(float(np.sum(loss(b) * b['weights'])) for b in batches)
  expected = 0
  for example in TASK.examples('eval'):
    prompt, (completion,) = seq2seq_batching.encode(
      TASK, model.tokenizer, example, [example.completion]
    )
    expected += alone(loss, prompt, completion)
  np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_choices_share_one_pass_of_the_encoder(losses):
  model, loss = losses
  batches = list(
    TASK.choice_batches(model.tokenizer, batch_size=1, form='encoder_decoder')
  )
  # Every question is read once, whatever the number of its choices.
  read = sum(np.sum(b.arrays['encoder_segment_ids'] > 0) for b in batches)
  assert read == sum(len(row['question']) + 2 for row in ROWS)
  scores = np.zeros((len(ROWS), 3))
  for batch in batches:
    found = np.asarray(loss(batch.arrays)) * batch.arrays['weights']
    np.add.at(scores, (batch.example, batch.choice), found)
  for index, example in enumerate(TASK.examples('eval')):
    prompt, choices = seq2seq_batching.encode(
      TASK, model.tokenizer, example, example.choices
    )
    expected = [alone(loss, prompt, choice) for choice in choices]
    # float32 sums of at most 30 terms of size 6.
    np.testing.assert_allclose(scores[index], expected, rtol=1e-5)


def test_prompts_are_what_the_encoder_reads(losses):
  model, _ = losses
  (batch,) = TASK.prompt_batches(
    model.tokenizer, batch_size=8, form='encoder_decoder'
  )
  for row, index in enumerate(batch.example):
    if index >= 0:
      ids = batch.tokens[row][batch.valid[row]].tolist()
      assert ids == [
        *model.tokenizer.encode(ROWS[index]['question'] + '?'),
        END,
      ]


@pytest.mark.parametrize('policy', ['drop', 'truncate', 'error'])
def test_pairs_too_long_for_either_side(losses, policy):
  model, _ = losses

  def batches():
    return list(
      batching.eval_batches(
        TASK,
        model.tokenizer,
        length=(6, 8),
        batch_size=2,
        too_long=policy,
        kind=EncodedPair,
      )
    )

  if policy == 'error':
    with pytest.raises(
      ValueError, match='9 and 3 positions .* more than 6 and 8'
    ):
      batches()
    return
  pairs = [
    (b['encoder_segment_ids'][row] == k, b['segment_ids'][row] == k, b, row)
    for b in batches()
    for row in range(2)
    for k in range(1, b['segment_ids'][row].max() + 1)
  ]
  # One question has 9 ids with its end, one completion 10.
  assert len(pairs) == (3 if policy == 'drop' else 5)
  for inputs, targets, batch, row in pairs:
    assert batch['encoder_tokens'][row][inputs][-1] == END
    assert batch['tokens'][row][targets][0] == START


def test_training_goes_on_from_a_saved_place(losses):
  model, _ = losses
  settings = {'length': (32, 48), 'batch_size': 1, 'seed': 3}

  def stream():
    return iter(
      TASK.train_batches(model.tokenizer, form='encoder_decoder', **settings)
    )

  first, second = stream(), stream()
  for _ in range(4):
    next(first)
  second.set_state(first.get_state())
  expected, actual = next(first), next(second)
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'chat': True}, 'no chat turns: set chat=False'),
    ({'pad_id': None}, r'no padding token \(pad_id\)'),
    ({'eos_id': None}, r'no end-of-text token \(eos_id\)'),
    ({'length': (6, 12), 'form': 'decoder'}, r'length=\(6, 12\) must be one'),
  ],
)
def test_what_does_not_fit_is_refused(losses, change, message):
  tokenizer = losses[0].tokenizer
  fields = {'pad_id', 'eos_id'} & change.keys()
  tokenizer = dataclasses.replace(
    tokenizer, **{name: change[name] for name in fields}
  )
  task = dataclasses.replace(TASK, chat=change.get('chat', False))
  with pytest.raises(ValueError, match=message):
    task.eval_batches(
      tokenizer,
      length=change.get('length', 64),
      batch_size=1,
      form=change.get('form', 'encoder_decoder'),
    )
