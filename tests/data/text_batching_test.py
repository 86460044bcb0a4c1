"""Batches for encoders, against what is in the examples."""

import dataclasses

import numpy as np
import pytest

from lora_opt.data import tasks
from lora_opt.data.text_batching import LabelledTexts, label_batches
from lora_opt.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.byte_level()
BOS, EOS = 256, 257


def rows(count, start=0):
  return [
    {'a': 'x' * (1 + i % 5), 'b': 'yz', 'label': i % 2, 'score': i / 2}
    for i in range(start, start + count)
  ]


@pytest.fixture
def task():
  return tasks.Classification(
    name='pairs',
    train=rows(20),
    eval=rows(7, 100),
    prompt='{a}',
    texts=('a', 'b'),
    label_names=('no', 'yes'),
  )


@pytest.fixture
def regression():
  return tasks.Regression(
    name='scores', train=rows(20), eval=rows(7, 100), texts=('a', 'b')
  )


def encoded(task, index=0):
  return LabelledTexts.of(task, task.examples('train')[index], TOKENIZER)


def test_a_row_holds_pairs_with_types_positions_and_labels(task):
  examples = [encoded(task, i) for i in (1, 2)]
  row = LabelledTexts.row(examples, 24)
  first = [BOS, *b'xx', EOS, *b'yz', EOS]
  second = [BOS, *b'xxx', EOS, *b'yz', EOS]
  padding = [0] * (24 - len(first) - len(second))
  assert row['tokens'].tolist() == first + second + padding
  types = [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
  assert row['token_types'].tolist() == types + padding
  assert row['positions'].tolist() == [*range(7), *range(8), *padding]
  assert row['segment_ids'].tolist() == [1] * 7 + [2] * 8 + padding
  assert row['labels'].tolist() == [1, 0, 0]
  assert row['weights'].tolist() == [1, 1, 0]


def test_without_texts_the_prompt_is_read(task):
  single = dataclasses.replace(task, texts=None, prompt='Is it {a}?')
  assert encoded(single).ids.tolist() == [BOS, *b'Is it x?', EOS]


@pytest.mark.parametrize(
  ('sizes', 'length', 'left'),
  [((9, 3), 11, (5, 3)), ((3, 9), 11, (3, 5)), ((9, 9), 12, (4, 5))],
)
def test_the_longer_text_is_cut_and_the_template_stays(
  task, sizes, length, left
):
  row = {'a': 'x' * sizes[0], 'b': 'y' * sizes[1], 'label': 0}
  example = encoded(dataclasses.replace(task, train=[row]))
  cut = example.truncated(length).ids.tolist()
  assert len(cut) == length
  assert cut == [BOS, *b'x' * left[0], EOS, *b'y' * left[1], EOS]
  assert example.truncated(99).ids.tolist() == example.ids.tolist()


def batches(task, **settings):
  return task.train_batches(
    TOKENIZER, length=32, batch_size=2, seed=0, form='encoder', **settings
  )


def test_an_epoch_has_every_example_once_with_its_own_label(task):
  wanted = sorted((2 + i % 5, i % 2) for i in range(20))
  seen = []
  for batch in batches(task):
    for row in range(2):
      for number, weight in enumerate(batch['weights'][row], 1):
        if weight:
          own = batch['segment_ids'][row] == number
          first = batch['token_types'][row][own] == 0
          label = int(batch['labels'][row, number - 1])
          seen.append((int(first.sum()) - 1, label))
    if len(seen) >= 20:
      break
  assert sorted(seen[:20]) == wanted


def test_training_goes_on_from_a_saved_place(regression):
  stream = iter(batches(regression))
  next(stream)
  state = stream.get_state()
  expected = [next(stream) for _ in range(3)]
  again = iter(batches(regression))
  again.set_state(state)
  for batch in expected:
    found = next(again)
    for name, array in batch.items():
      np.testing.assert_array_equal(found[name], array)
  # Labels are part of what a place belongs to.
  changed = [row | {'score': row['score'] + 1} for row in rows(20)]
  other = iter(batches(dataclasses.replace(regression, train=changed)))
  with pytest.raises(ValueError, match='another stream'):
    other.set_state(state)


def test_evaluation_has_a_row_for_each_example_of_its_length(regression):
  row = {'a': 'x' * 40, 'b': 'y' * 40, 'score': 4.5}
  task = dataclasses.replace(regression, eval=[*rows(4), row])
  found = list(task.label_batches(TOKENIZER, batch_size=3, longest=50))
  lengths = [batch.arrays['tokens'].shape for batch in found]
  assert lengths == [(3, 16), (3, 16), (3, 50)]
  numbers = np.concatenate([batch.example for batch in found])
  assert numbers.tolist() == [0, 1, 2, 3, -1, -1, 4, -1, -1]
  labels = np.concatenate([batch.arrays['labels'] for batch in found])[:, 0]
  assert labels.tolist() == [0, 0.5, 1, 1.5, 0, 0, 4.5, 0, 0]
  weights = np.concatenate([batch.arrays['weights'] for batch in found])
  np.testing.assert_array_equal(weights[:, 0] > 0, numbers >= 0)
  # The long one was cut to the positions that the model has.
  assert (found[-1].arrays['segment_ids'][0] == 1).all()


def test_given_indices_keep_their_numbers(task):
  found = list(label_batches(task, TOKENIZER, indices=[5, 2], batch_size=4))
  numbers = np.concatenate([batch.example for batch in found])
  assert sorted(numbers.tolist()) == [-1, -1, 2, 5]


def test_what_an_encoder_cannot_do_is_refused(task):
  writing = tasks.Generation(
    name='writing', train=rows(3), eval=rows(3), prompt='{a}', completion='{b}'
  )
  with pytest.raises(ValueError, match='kind generation'):
    batches(writing)
  with pytest.raises(ValueError, match='does not go with this kind of model'):
    task.choice_batches(TOKENIZER, batch_size=2, form='encoder')
  with pytest.raises(ValueError, match='no template'):
    core = Tokenizer.byte_level().core
    core.post_processor = None
    Tokenizer(core).encode_texts('a')


@pytest.mark.parametrize('fields', ['a', (), ('a', 'b', 'label')])
def test_texts_names_one_field_or_two(task, fields):
  with pytest.raises(ValueError, match='one field or two'):
    dataclasses.replace(task, texts=fields)


def test_a_missing_text_is_named_with_its_row(task):
  broken = dataclasses.replace(task, texts=('a', 'nope'))
  with pytest.raises(ValueError, match="no field 'nope'"):
    broken.validate()


@pytest.mark.parametrize('score', ['high', True, float('nan'), None])
def test_a_score_that_is_no_number_is_refused(regression, score):
  broken = dataclasses.replace(
    regression, train=[row | {'score': score} for row in rows(2)]
  )
  with pytest.raises(ValueError, match="field 'score' must be a number"):
    broken.validate()
