"""Runs that meet something bad: what they say, and how they go on."""

import dataclasses
import functools
import json
import os
import signal
from typing import ClassVar

import jax
import numpy as np
import pytest

import lora_opt
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.history import read_metrics
from lora_opt.training import stopping
from lora_opt.training.loop import train
from lora_opt.training.step_log import TrainingDivergedError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('fast_compile')]


def run(folder, model, task, **settings):
  return train(
    folder,
    model,
    task,
    lora_opt.adamw(1e-2),
    batch_size=4,
    task_feature_lengths={'targets': 64},
    **(
      {
        'train_steps': 4,
        'evaluator': functools.partial(Evaluator, max_new_tokens=2),
        'evaluate_before': False,
      }
      | settings
    ),
  )


class Poisoned:
  """A task some of whose batches are not numbers; also those batches."""

  def __init__(self, inner, steps):
    self._inner, self._steps = inner, steps

  def __getattr__(self, name):
    return getattr(self._inner, name)

  def train_batches(self, *args, **kwargs):
    return Poisoned(self._inner.train_batches(*args, **kwargs), self._steps)

  def __iter__(self):
    iterator = Poisoned(iter(self._inner), self._steps)
    iterator.step = 0
    return iterator

  def __next__(self):
    self.step += 1
    batch = next(self._inner)
    if self.step in self._steps:
      batch = batch | {'weights': batch['weights'] * np.float32('nan')}
    return batch


def with_nan(model):
  leaves, structure = jax.tree.flatten(model.base)
  leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(np.nan)
  return dataclasses.replace(model, base=jax.tree.unflatten(structure, leaves))


def test_a_base_that_is_not_finite_is_named(tmp_path, model, task):
  said = 'base weights: .* holds 1 value that is NaN or infinite'
  with pytest.raises(TrainingDivergedError, match=said):
    run(tmp_path / 'a', with_nan(model), task)
  with pytest.raises(ValueError, match=said):
    run(tmp_path / 'b', with_nan(model), task, evaluate_before=True)
  assert not list((tmp_path / 'b').glob('evaluation/*'))


def test_a_batch_that_is_not_finite_is_named(tmp_path, model, task):
  said = 'loss is nan at step 3: batch of step 3: weights holds'
  with pytest.raises(TrainingDivergedError, match=said):
    run(tmp_path, model, Poisoned(task, {3}))
  assert said in json.loads((tmp_path / 'diverged.json').read_text())['error']


def test_patience_lets_skipped_steps_pass_and_has_an_end(tmp_path, model, task):
  run(tmp_path / 'a', model, Poisoned(task, {2, 3}), skip_patience=2)
  facts = json.loads((tmp_path / 'a/run.json').read_text())
  assert facts['skipped_steps'] == 2
  rows = [r for r in read_metrics(tmp_path / 'a') if r['split'] == 'train']
  assert [row['skipped_steps'] for row in rows] == [0, 1, 2, 2]
  with pytest.raises(TrainingDivergedError, match='at step 4'):
    run(tmp_path / 'b', model, Poisoned(task, {2, 3, 4}), skip_patience=2)


class Signalled(Evaluator):
  """Gets a signal in its first evaluation of some step."""

  at: ClassVar[set[int]] = set()

  def __call__(self, base, lora, step=0):
    if step in self.at:
      self.at.remove(step)
      os.kill(os.getpid(), signal.SIGTERM)
    return super().__call__(base, lora, step)


@pytest.mark.parametrize(
  ('step', 'left'), [(0, 0), (2, 2), (4, 4)], ids=['before', 'during', 'after']
)
def test_a_signal_in_an_evaluation_ends_with_75(
  tmp_path, model, task, monkeypatch, step, left
):
  monkeypatch.setattr(Signalled, 'at', {step})
  again = functools.partial(
    run,
    tmp_path,
    model,
    task,
    evaluate_before=True,
    eval_period=2,
    evaluator=functools.partial(Signalled, max_new_tokens=2),
  )
  with stopping.Stops(), pytest.raises(SystemExit) as ended:
    again()
  assert ended.value.code == stopping.EXIT == 75
  assert saved(tmp_path) == left
  again()
  steps = [(r['split'], r['step']) for r in read_metrics(tmp_path)]
  assert sorted(steps) == [('eval', 2), *(('train', i) for i in (1, 2, 3, 4))]


def test_a_signal_in_start_up_ends_with_75(tmp_path, model, task, monkeypatch):
  def validate(splits=None):
    os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(type(task), 'validate', lambda self, *_: validate())
    with stopping.Stops(), pytest.raises(SystemExit) as ended:
      run(tmp_path, model, task)
  assert ended.value.code == stopping.EXIT
  run(tmp_path, model, task)
  assert saved(tmp_path) == 4


def saved(folder):
  steps = folder.glob('checkpoints/step_*[0-9]')
  return max(
    (int(path.name.removeprefix('step_')) for path in steps), default=0
  )
