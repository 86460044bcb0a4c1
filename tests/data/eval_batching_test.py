"""Evaluation batches: branches of choices, left-padded prompts."""

import collections

import numpy as np
import pytest

from lora_opt.data import eval_batching, tasks

ROWS = [
  {'question': 'Q' * n, 'choices': ['a' * (n + 1), 'bb', 'c' * 3], 'answer': 1}
  for n in (1, 5, 2, 9, 3, 30)
]


def make_task(rows=ROWS, **kwargs):
  kwargs = {'chat': False, 'prompt': 'Is {question}:'} | kwargs
  return tasks.MultipleChoice(name='toy', train=rows, eval=rows, **kwargs)


def pack(toy, task=None, **kwargs):
  kwargs = {'batch_size': 2, 'lengths': (48, 128)} | kwargs
  return list(eval_batching.pack_choices(task or make_task(), toy, **kwargs))


def visible(arrays, row, query):
  """The positions that `query` may attend to, by the rule of branches."""
  segment, branch = arrays['segment_ids'][row], arrays['branches'][row]
  key = np.arange(len(segment))
  same = (key <= query) & (segment == segment[query])
  return np.flatnonzero(same & ((branch == 0) | (branch == branch[query])))


@pytest.mark.parametrize('chat', [False, True])
def test_each_choice_sees_its_own_text_and_no_other(toy, chat):
  task = make_task(chat=chat)
  read = collections.defaultdict(list)
  for batch in pack(toy, task):
    arrays = batch.arrays
    for row, query in np.argwhere(arrays['weights'] > 0):
      seen = visible(arrays, row, query)
      place = batch.example[row, query], batch.choice[row, query]
      text = toy.show(arrays['tokens'][row][seen])
      read[place].append((text, arrays['targets'][row, query]))
      np.testing.assert_array_equal(
        arrays['positions'][row][seen], np.arange(len(seen))
      )
  examples = task.examples('eval')
  assert set(read) == {(i, k) for i in range(len(ROWS)) for k in range(3)}
  for (index, number), steps in read.items():
    prompt, choices = task.encode_choices(examples[index], toy)
    choice = choices[number]
    assert [target for _, target in steps] == choice
    for step, (text, _) in enumerate(steps):
      assert text == toy.show(prompt + choice[:step])


def test_losses_sum_to_one_number_per_choice(toy):
  task = make_task()
  scores = np.zeros((len(ROWS), 3))
  for batch in pack(toy, task):
    losses = np.ones_like(batch.arrays['weights'])
    np.add.at(
      scores, (batch.example, batch.choice), -losses * batch.arrays['weights']
    )
  for example, row in zip(task.examples('eval'), scores, strict=True):
    _, choices = task.encode_choices(example, toy)
    np.testing.assert_array_equal(row, [-len(choice) for choice in choices])


def test_few_shapes_and_full_rows(toy):
  batches = pack(toy)
  shapes = {batch.arrays['tokens'].shape for batch in batches}
  assert shapes == {(2, 48), (2, 128)}
  for batch in batches:
    for name, array in batch.arrays.items():
      assert array.dtype == (np.float32 if name == 'weights' else np.int32)
  short = [b for b in batches if b.arrays['tokens'].shape[1] == 48]
  assert max(b.arrays['segment_ids'].max() for b in short) > 1
  assert len(short) <= 2


def test_one_may_ask_for_some_examples(toy):
  batches = pack(toy, indices=[4, 1])
  found = {
    int(i)
    for b in batches
    for i in np.unique(b.example[b.arrays['weights'] > 0])
  }
  assert found == {1, 4}
  prompts = eval_batching.pad_prompts(make_task(), toy, indices=[2])
  assert [b.example.tolist() for b in prompts] == [[2] + [-1] * 7]


def test_prompts_end_at_the_right(toy):
  task = make_task(chat=True)
  batches = list(
    eval_batching.pad_prompts(task, toy, batch_size=4, lengths=(40, 64, 128))
  )
  assert [b.tokens.shape for b in batches] == [(4, 40), (4, 40), (4, 64)]
  found = []
  for batch in batches:
    for row, index in enumerate(batch.example):
      if index < 0:
        assert not batch.valid[row].any()
        continue
      found.append(index)
      prompt, _ = task.encode(task.examples('eval')[index], toy)
      np.testing.assert_array_equal(batch.tokens[row][batch.valid[row]], prompt)
      assert batch.valid[row, -1]
      np.testing.assert_array_equal(
        batch.positions[row][batch.valid[row]], np.arange(len(prompt))
      )
  assert sorted(found) == list(range(len(ROWS)))


def test_mistakes_are_named(toy):
  with pytest.raises(ValueError, match=r'eval example 0 needs 14 positions'):
    pack(toy, lengths=(8,))
  with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
    pack(toy, batch_size=0)
  for lengths in ((), (8, 4), (0, 4)):
    with pytest.raises(ValueError, match='must be positive and ascending'):
      pack(toy, lengths=lengths)
  with pytest.raises(ValueError, match='eval example 0 needs 5 positions'):
    list(eval_batching.pad_prompts(make_task(), toy, lengths=(4,)))
  rows = [{'question': 'Q', 'answer': 'a'}]
  task = tasks.Generation(name='toy', train=rows, eval=rows, chat=False)
  with pytest.raises(ValueError, match="'toy' has no choices"):
    pack(toy, task)


def test_what_is_only_read_has_no_weight(toy):
  row = {'before': 'It is ', 'after': ' here.', 'answer': 0}
  rows = [row | {'choices': ['hot', 'chilly']}]
  task = tasks.FillBlank(name='blank', train=rows, eval=rows, chat=False)
  (batch,) = eval_batching.pack_choices(task, toy, batch_size=1, lengths=(64,))
  scored = batch.arrays['weights'][0] > 0
  for number, text in enumerate((' here.', ' here.')):
    place = scored & (batch.choice[0] == number)
    assert toy.show(batch.arrays['targets'][0][place]) == text
  read = (batch.arrays['branches'][0] == 2) & ~scored
  assert toy.show(batch.arrays['targets'][0][read]) == ' chilly'
