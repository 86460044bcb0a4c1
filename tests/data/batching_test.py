"""Training batches: packing, order, shares of processes, exact resumption."""

import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_opt.data import batching, tasks

KEYS = {'tokens', 'targets', 'weights', 'positions', 'segment_ids'}


def make_task(sizes, **kwargs):
  """Examples 'letters of that size' -> 'the same in capitals'."""
  rows = [
    {'question': f'{i}:' + 'q' * prompt, 'answer': f'{i}=' + 'a' * completion}
    for i, (prompt, completion) in enumerate(sizes)
  ]
  kwargs = {'name': 'toy', 'chat': False, 'prompt': '{question}'} | kwargs
  return tasks.Generation(train=rows, eval=rows, **kwargs)


def some_task(count=23):
  return make_task([(i % 5, i % 7) for i in range(count)])


def batches(task, toy, **kwargs):
  kwargs = {'length': 40, 'batch_size': 3, 'seed': 0} | kwargs
  return batching.train_batches(task, toy, **kwargs)


def segments(batch):
  """Every packed example of a batch, as arrays without padding."""
  for row in range(len(batch['tokens'])):
    for segment in range(1, batch['segment_ids'][row].max(initial=0) + 1):
      place = batch['segment_ids'][row] == segment
      yield {name: batch[name][row][place] for name in KEYS}


def texts(stream, toy):
  """Prompt and completion of every example in a stream of batches."""
  for batch in stream:
    for segment in segments(batch):
      learned = segment['weights'] > 0
      completion = toy.show(segment['targets'][learned])
      prompt = toy.show(segment['tokens'][: len(learned) - learned.sum() + 1])
      yield prompt, completion


def by_epoch(stream):
  """The batches of each epoch; batch_size must be 1."""
  iterator = iter(stream)
  for epoch in itertools.count():
    batches = []
    while iterator.get_state()['epoch'] == epoch:
      batches.append(next(iterator))
    yield batches


def expected(task, toy):
  for example in task.examples('train'):
    prompt, completion = task.encode(example, toy)
    yield toy.show(prompt), toy.show(completion)


@pytest.mark.parametrize('packing', [True, False])
def test_batches_have_the_promised_form(toy, packing):
  batch = next(iter(batches(some_task(), toy, packing=packing)))
  assert set(batch) == KEYS
  for name, array in batch.items():
    assert array.shape == (3, 40)
    assert array.dtype == (np.float32 if name == 'weights' else np.int32)


@settings(
  max_examples=25,
  deadline=None,
  # The tokenizer is not changed, so that examples may share it.
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1),
  length=st.integers(10, 40),
  seed=st.integers(0, 9),
  packing=st.booleans(),
)
def test_every_completion_token_is_learned_once_an_epoch(
  toy, sizes, length, seed, packing
):
  task = make_task([(0, 0), *sizes])
  stream = batches(
    task, toy, length=length, batch_size=1, packing=packing, seed=seed
  )
  fitting = [
    pair for pair in expected(task, toy) if _size(pair, toy) <= length + 1
  ]
  for _, epoch in zip(range(3), by_epoch(stream), strict=False):
    found = collections.Counter(texts(epoch, toy))
    assert found == collections.Counter(fitting)


def _size(pair, toy):
  return sum(len(toy.encode(text)) for text in pair)


def test_no_target_crosses_a_boundary(toy):
  for batch in itertools.islice(batches(some_task(), toy), 5):
    tokens, targets = batch['tokens'], batch['targets']
    ids, weights = batch['segment_ids'], batch['weights']
    inside = (ids[:, :-1] == ids[:, 1:]) & (ids[:, 1:] > 0)
    np.testing.assert_array_equal(
      targets[:, :-1][inside], tokens[:, 1:][inside]
    )
    # What the last position of a segment predicts is the end of its text.
    last = (ids > 0) & ~np.pad(inside, ((0, 0), (0, 1)))
    assert (targets[last] == toy.eos_id).all()
    assert (weights[ids == 0] == 0).all()
    for segment in segments(batch):
      size = len(segment['tokens'])
      np.testing.assert_array_equal(segment['positions'], np.arange(size))


def test_packing_leaves_little_padding(toy):
  stream = batches(some_task(200), toy, length=64, batch_size=8)
  filled = [np.mean(b['segment_ids'] > 0) for b in itertools.islice(stream, 20)]
  assert np.mean(filled) > 0.9


def test_without_packing_a_row_is_an_example(toy):
  for batch in itertools.islice(batches(some_task(), toy, packing=False), 9):
    assert set(np.unique(batch['segment_ids'])) <= {0, 1}
    assert batch['segment_ids'][:, 0].all()


def test_epochs_differ_and_the_seed_sets_the_order(toy):
  def order(seed):
    stream = batches(some_task(8), toy, seed=seed, batch_size=8, packing=False)
    return [list(texts([b], toy)) for b in itertools.islice(stream, 3)]

  first, second, third = order(0)
  assert sorted(first) == sorted(second) == sorted(third)
  assert first != second != third
  assert order(0) == [first, second, third]
  # Seed 1 is not a shifted seed 0.
  assert not [epoch for epoch in order(1) if epoch in (first, second, third)]


@pytest.mark.parametrize('shares', [[(0,), (1, 2)], [(2,), (1,), (0,)]])
def test_processes_keep_rows_of_the_same_batches(toy, shares):
  task = some_task()
  streams = [iter(batches(task, toy, rows=rows)) for rows in shares]
  for whole in itertools.islice(batches(task, toy), 9):
    for rows, stream in zip(shares, streams, strict=True):
      part = next(stream)
      for name in KEYS:
        np.testing.assert_array_equal(part[name], whole[name][list(rows)])
  first, *others = [stream.get_state() for stream in streams]
  assert all(state == first for state in others)


@pytest.mark.parametrize('packing', [True, False])
@pytest.mark.parametrize('position', [0, 1, 4, 7, 40])
def test_a_restored_iterator_replays_the_same_batches(toy, packing, position):
  def make():
    return iter(batches(some_task(), toy, packing=packing))

  iterator = make()
  for _ in range(position):
    next(iterator)
  state = json.dumps(iterator.get_state())
  rest = [next(iterator) for _ in range(12)]
  fresh, used = make(), make()
  next(used)
  for restored in (fresh, used, iterator):
    restored.set_state(json.loads(state))
    assert json.dumps(restored.get_state()) == state
    for batch in rest:
      again = next(restored)
      for name in KEYS:
        np.testing.assert_array_equal(again[name], batch[name])


def test_the_batch_size_may_change_on_resumption(toy):
  small, large = (
    iter(batches(some_task(), toy, batch_size=size)) for size in (2, 4)
  )
  next(small)
  large.set_state(small.get_state())
  again = next(large)
  rest = [next(small), next(small)]
  for name in KEYS:
    np.testing.assert_array_equal(
      again[name], np.concatenate([batch[name] for batch in rest])
    )


@pytest.mark.parametrize(
  'change',
  [
    {'seed': 1},
    {'length': 41},
    {'packing': False},
    {'task': make_task([(1, 1)])},
  ],
)
def test_the_state_of_another_stream_is_refused(toy, change):
  state = iter(batches(some_task(), toy)).get_state()
  other = batches(**{'task': some_task(), 'toy': toy} | change)
  with pytest.raises(ValueError, match='another stream of training data'):
    iter(other).set_state(state)


def test_long_examples_are_dropped_and_counted(toy):
  task = make_task([(1, 1), (50, 1), (2, 2), (1, 60)])
  split = batching.encode_split(task, toy, 'train', length=20)
  assert (split.total, split.too_long, len(split.examples)) == (4, 2, 2)
  assert str(split) == '4 examples, 2 too long and dropped'
  stream = batches(task, toy, length=20, batch_size=1)
  prompts = {prompt[0] for prompt, _ in texts(next(by_epoch(stream)), toy)}
  assert prompts == {'0', '2'}


def test_long_examples_can_be_truncated(toy):
  task = make_task([(50, 1), (1, 60)])
  split = batching.encode_split(
    task, toy, 'train', length=10, too_long='truncate'
  )
  first, second = split.examples
  assert (split.too_long, len(first.ids), len(second.ids)) == (2, 11, 11)
  # Both ends of the prompt and the whole completion stay ...
  assert toy.show(first.ids) == '0:qqqq 0=a<eos>'
  assert first.prompt_length == 6
  # ... and of a long completion the beginning, after one token of the prompt.
  assert toy.show(second.ids) == 'q 1=aaaaaaa'
  assert second.prompt_length == 1


def test_what_opens_and_closes_a_prompt_is_never_cut(toy):
  toy.add_bos = True
  for chat in (False, True):
    task = make_task([(70, 1), (1, 90)], chat=chat)
    opening, closing = task.frame(toy)
    first, second = batching.encode_split(
      task, toy, 'train', length=60, too_long='truncate'
    ).examples
    for example, index in ((first, 0), (second, 1)):
      whole, _ = task.encode(task.examples('train')[index], toy)
      prompt = example.ids[: example.prompt_length].tolist()
      assert prompt[:opening] == whole[:opening]
      assert prompt[len(prompt) - closing :] == whole[len(whole) - closing :]
      assert len(example.ids) == 61
    assert toy.show(first.ids).endswith('0=a' + ('<end>' if chat else '<eos>'))
  with pytest.raises(
    ValueError, match=r'example 0: .* closes its prompt takes'
  ):
    batching.encode_split(task, toy, 'train', length=12, too_long='truncate')


@pytest.mark.parametrize('policy', ['drop', 'truncate', 'error'])
def test_evaluation_leaves_nothing_out(toy, policy):
  task = make_task([(3, 1), (50, 1)], too_long=policy)
  (batch,) = task.eval_batches(toy, length=20, longest=100, batch_size=2)
  assert batch['tokens'].shape == (2, 80)
  assert len(list(segments(batch))) == 2
  for longest in (0, 40):
    with pytest.raises(ValueError, match='eval example 1 needs 56 positions'):
      task.eval_batches(toy, length=20, longest=longest, batch_size=2)


def test_an_example_that_just_fits_is_kept(toy):
  task = make_task([(3, 3)])
  prompt, completion = task.encode(task.examples('train')[0], toy)
  size = len(prompt + completion)
  kept = batching.encode_split(task, toy, 'train', length=size - 1)
  assert (len(kept.examples), kept.too_long) == (1, 0)
  assert str(kept) == '1 examples, none too long'
  with pytest.raises(ValueError, match='all 1 train examples need more than'):
    batching.encode_split(task, toy, 'train', length=size - 2)


def test_mistakes_are_named(toy):
  task = some_task(3)
  for kwargs, message in [
    ({'length': 0}, 'length=0 must be at least 1'),
    ({'batch_size': 0}, 'batch_size=0 must be at least 1'),
    (
      {'too_long': 'cut'},
      "too_long='cut' must be one of drop, truncate, error",
    ),
    ({'rows': (0, 3)}, r'rows=\(0, 3\) must be in 0 ... 2'),
    (
      {'length': 6, 'too_long': 'error'},
      r'example 1 needs 7 positions of a row, more than 6',
    ),
  ]:
    with pytest.raises(ValueError, match=message):
      batches(task, toy, **kwargs)


def test_evaluation_reads_every_example_once_in_order(toy):
  task = some_task(10)
  stream = list(
    batching.eval_batches(task, toy, length=40, batch_size=4, packing=False)
  )
  assert [b['tokens'].shape for b in stream] == [(4, 40)] * 3
  assert list(texts(stream, toy)) == list(expected(task, toy))
  packed = batching.eval_batches(task, toy, length=40, batch_size=4)
  assert sorted(texts(packed, toy)) == sorted(expected(task, toy))
