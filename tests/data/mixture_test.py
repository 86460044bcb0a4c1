"""Mixtures: rates over epochs, exact resumption, workers, processes."""

import collections
import contextlib
import itertools

import numpy as np
import pytest

from lora_opt.data import order, tasks
from lora_opt.data.mixture import Mixture

SIZES = {'a': 30, 'b': 12, 'c': 5}


def task(name, count, **kwargs):
  rows = [
    {'question': f'{name}{i}:' + 'q' * (i % 5), 'answer': 'x' * (i % 7 + 1)}
    for i in range(count)
  ]
  return tasks.Generation(
    name=name, train=rows, eval=rows, prompt='{question}', chat=False, **kwargs
  )


def mixture(**kwargs):
  parts = [task(name, count) for name, count in SIZES.items()]
  return Mixture(**{'name': 'abc', 'tasks': parts} | kwargs)


def stream(toy, mix=None, **kwargs):
  settings = {'length': 32, 'batch_size': 4, 'seed': 3} | kwargs
  return (mix or mixture()).train_batches(toy, **settings)


def prompts(batch, toy):
  """The prompt of every packed example, and nothing of any other in it."""
  for row, ids in enumerate(batch['segment_ids']):
    for segment in range(1, ids.max(initial=0) + 1):
      place = ids == segment
      text = toy.show(batch['tokens'][row][place])
      assert text.count(':') == 1
      np.testing.assert_array_equal(
        batch['positions'][row][place], np.arange(place.sum())
      )
      yield text.partition(':')[0]


def assert_same(batch, other):
  assert batch.keys() == other.keys()
  for name in batch:
    np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize(
  ('settings', 'share'),
  [
    ({'rates': 'proportional'}, (30 / 47, 12 / 47, 5 / 47)),
    ({'rates': 'equal'}, (1 / 3, 1 / 3, 1 / 3)),
    ({'rates': (1, 1, 2)}, (0.25, 0.25, 0.5)),
    ({'rates': 'proportional', 'maximum': 12}, (12 / 29, 12 / 29, 5 / 29)),
  ],
)
def test_tasks_come_at_their_rates(toy, settings, share):
  mix = mixture(**settings)
  np.testing.assert_allclose(mix.mixing_rates(), share)
  iterator = iter(stream(toy, mix, batch_size=1))
  counts = collections.Counter()
  epochs = 20
  while iterator.get_state()['epoch'] < epochs:
    counts.update(name[0] for name in prompts(next(iterator), toy))
  total = 47 * epochs
  for name, rate in zip(SIZES, share, strict=True):
    assert abs(counts[name] - rate * total) <= 1


def test_every_example_comes_once_before_any_comes_twice(toy):
  iterator = iter(stream(toy, mixture(rates=(1, 1, 1)), batch_size=1))
  counts = collections.Counter()
  while iterator.get_state()['epoch'] < 7:
    counts.update(prompts(next(iterator), toy))
  for name, size in SIZES.items():
    seen = [counts[f'{name}{i}'] for i in range(size)]
    assert max(seen) - min(seen) <= 1


def test_temperature_goes_from_proportional_to_equal():
  sizes = [1000, 10]
  sharp, flat = (order.mixing_rates(sizes, 'proportional', t) for t in (1, 1e6))
  assert sharp == (1000 / 1010, 10 / 1010)
  np.testing.assert_allclose(flat, 0.5, atol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rates': (1, 2)}, "'abc': .* a number for each of the 3 tasks"),
    ({'rates': 'often'}, "rates='often' must be 'proportional', 'equal'"),
    ({'rates': (1, 0, 1)}, 'every rate must be above 0'),
    ({'rates': (1, float('nan'), 1)}, 'every rate must be above 0, and fin'),
    ({'rates': (1, float('inf'), 1)}, 'every rate must be above 0, and fin'),
    ({'temperature': 0}, 'temperature=0 must be above 0'),
    ({'temperature': float('nan')}, 'temperature=nan must be above 0'),
    ({'temperature': 1e-6, 'rates': (1, 2, 1)}, 'leave nothing to a task'),
    ({'maximum': 0}, 'maximum=0 must be at least 1'),
  ],
)
def test_bad_rates_are_named_before_training(settings, message):
  with pytest.raises(ValueError, match=message):
    mixture(**settings).validate()


def test_a_mixture_needs_tasks_of_different_names():
  for parts in ([task('a', 2)], [task('a', 2), task('a', 3)]):
    with pytest.raises(ValueError, match='two or more tasks with different'):
      mixture(tasks=parts)


def test_each_task_keeps_its_own_policy_for_long_examples(toy):
  parts = [task('a', 9, too_long='drop'), task('b', 9, too_long='truncate')]
  mix = Mixture(name='ab', tasks=parts)
  dataset = stream(toy, mix, length=10)
  first, second = dataset.summary
  assert (first['task'], first['too_long_policy']) == ('a', 'drop')
  assert (second['task'], second['too_long_policy']) == ('b', 'truncate')
  assert first['too_long'] == second['too_long'] > 0
  assert dataset.rows.order.counts == (9 - first['too_long'], 9)


@pytest.mark.parametrize('form', ['decoder', 'encoder_decoder'])
def test_stopped_in_mid_epoch_it_replays_the_same_batches(toy, form):
  toy.pad_id = 255  # what a decoder behind an encoder begins with

  def make():
    return iter(stream(toy, mixture(rates=(1, 2, 1)), form=form))

  whole = list(itertools.islice(make(), 14))
  stopped = make()
  done, state = 0, stopped.get_state()
  while done < 5 or not state['row']:
    next(stopped)
    done, state = done + 1, stopped.get_state()
  resumed = make()
  resumed.set_state(state)
  assert done < 14
  for batch in whole[done:]:
    assert_same(next(resumed), batch)


@pytest.mark.slow
def test_workers_make_the_same_batches_and_resume_in_another_number(toy):
  def make(workers):
    return contextlib.closing(
      iter(stream(toy, mixture(rates=(1, 2, 1)), workers=workers))
    )

  whole = list(itertools.islice(stream(toy, mixture(rates=(1, 2, 1))), 20))
  with make(2) as two:
    for batch in whole[:7]:
      assert_same(next(two), batch)
    state = two.get_state()  # two and more batches behind the workers
    assert state['row'] > 0
  for workers in (0, 1):
    with make(workers) as resumed:
      resumed.set_state(state)
      for batch in whole[7:]:
        assert_same(next(resumed), batch)


def test_two_processes_see_disjoint_examples_that_add_up_to_the_whole(toy):
  whole, *shares = (
    iter(stream(toy, rows=rows)) for rows in (None, (0, 1), (2, 3))
  )
  seen = [collections.Counter() for _ in shares]
  expected = collections.Counter()
  while whole.get_state()['epoch'] < 1:
    expected.update(prompts(next(whole), toy))
    for counter, share in zip(seen, shares, strict=True):
      counter.update(prompts(next(share), toy))
  first, second = seen
  assert first + second == expected
  assert set(expected) >= {f'a{i}' for i in range(30)}
  # Only the batch that crosses into the second epoch may bring one again.
  assert sum((first & second).values()) <= 4 * 32 // 4
