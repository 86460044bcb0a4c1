"""A head at random that nothing trains is refused, what else stays is said."""

import jax
import numpy as np
import optax
import pytest
from absl import logging

import lora_opt
from lora_opt.data import tasks
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, random_encoder
from lora_opt.models.random_model import random_model
from lora_opt.training.loop import train
from lora_opt.training.train_state import TrainState
from lora_opt.training.untrained import PATIENCE, Watch

pytestmark = pytest.mark.usefixtures('fast_compile')

LORA = LoraConfig(rank=2)


@pytest.fixture(scope='module')
def model():
  return random_encoder(LORA, num_layers=1, remat='none')


@pytest.fixture(name='said')
def _said(monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *a: said.append(text % a)
  )
  return said


def run(folder, model, optimizer, steps, **settings):
  rows = [{'text': 'ab'[i % 2] * (1 + i), 'label': i % 2} for i in range(6)]
  task = tasks.Classification(
    name='letters',
    train=rows,
    eval=rows,
    prompt='{text}',
    texts=('text',),
    label_names=('a', 'b'),
  )
  return train(
    folder,
    model,
    task,
    optimizer,
    train_steps=steps,
    task_feature_lengths={'targets': 32},
    batch_size=2,
    evaluate_before=False,
    diagnostics=False,
    **settings,
  )


@pytest.mark.parametrize('steps', [2, PATIENCE + 5])
def test_a_run_that_does_not_train_a_random_head_is_refused(
  tmp_path, model, steps
):
  message = r'head/dense/bias, .*head/out/kernel started at random, .*other='
  with pytest.raises(ValueError, match=message):
    run(tmp_path, model, lora_opt.adamw(1e-2), steps)
  assert not (tmp_path / 'adapter').exists()


def test_a_head_that_was_trained_before_may_stay(tmp_path, model, said):
  trained = model.init(jax.random.key(0))
  model.export(tmp_path / 'start', trained)
  adapter = run(
    tmp_path / 'run',
    model,
    lora_opt.adamw(1e-2),
    2,
    initial_adapter=str(tmp_path / 'start'),
  )
  assert 'head/out/kernel: still as at the start' in said[0]
  after = model.load_adapter(adapter)['head']['out']['kernel']
  np.testing.assert_array_equal(after, trained['head']['out']['kernel'])


def watch_steps(model, optimizer, steps, drawn=()):
  """A watch over so many updates with gradients of one."""
  placement = Partitioner().place(model)
  lora = model.init(jax.random.key(0))
  state = optimizer.init(lora)
  watch = Watch(lora, placement, drawn)
  for _ in range(steps):
    updates, state = optimizer.update(
      jax.tree.map(lambda x: 0 * x + 1, lora), state, lora
    )
    lora = optax.apply_updates(lora, updates)
    stepped = (TrainState(0, lora, state), {})
    assert watch(stepped) is stepped
  watch.finish()


@pytest.mark.parametrize(
  'optimizer',
  [
    lora_opt.adamw(1e-2, other=optax.adam(1e-2)),
    optax.MultiSteps(optax.sgd(1e-2), 4),
    optax.sgd(optax.linear_schedule(0.0, 1.0, 3)),
    # The head's rate rises later than that of the factors.
    lora_opt.adamw(1e-2, other=optax.sgd(lambda step: 1e-2 * (step > 5))),
    optax.sgd(0.0),  # nothing is trained, as asked for
  ],
)
def test_what_trains_the_head_is_let_through(model, said, optimizer):
  watch_steps(model, optimizer, PATIENCE + 3, model.drawn)
  assert not said


def test_lengths_of_dora_that_stay_are_said(said):
  dora = random_model(LoraConfig('.*/q', rank=2, dora=True), num_layers=1)
  watch_steps(dora, lora_opt.adamw(1e-2), 2)
  assert 'layers/attention/q/magnitude: still as at the start' in said[0]


def test_a_model_without_other_leaves_is_not_watched(said):
  model = random_model(LORA, num_layers=1)
  watch_steps(model, lora_opt.adamw(1e-2), 1)
  assert not Watch(
    model.init(jax.random.key(0)), Partitioner().place(model), ()
  )._active


def test_a_part_of_a_head_is_none(model):
  half = random_encoder(LORA, num_layers=1, remat='none')
  head = half.init(jax.random.key(0))['head']
  half.head['out'] = head['out']
  assert half.drawn == ('head/dense',)
  with pytest.raises(ValueError, match='it lacks head/dense: it needs an adap'):
    half.merge('unused', None)
  with pytest.raises(ValueError, match='it lacks head/dense'):
    half.predict(half.base, None, {})
