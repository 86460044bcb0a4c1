"""A whole run of a tiny encoder: it learns labels and numbers, and goes on."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt.data import tasks
from lora_opt.devices.partitioning import Partitioner
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.history import read_metrics
from lora_opt.models import LoraConfig, random_encoder
from lora_opt.training.loop import train

pytestmark = pytest.mark.usefixtures('fast_compile')

STEPS = 24


def rows(count, start=0):
  return [
    {'text': 'ab'[i % 2] * (1 + i % 4), 'label': i % 2, 'score': float(i % 2)}
    for i in range(start, start + count)
  ]


@pytest.fixture(scope='module')
def model():
  lora = LoraConfig(rank=2, dropout=0.1)
  return random_encoder(
    lora, num_layers=1, remat='none', dropout=0.1, head_dropout=0.1
  )


@pytest.fixture(scope='module')
def task():
  return tasks.Classification(
    name='letters',
    train=rows(40),
    eval=rows(6, 100),
    prompt='{text}',
    texts=('text',),
    label_names=('a', 'b'),
  )


def run(folder, model, task, steps=STEPS):
  optimizer = lora_opt.adamw(1e-2, other=optax.adam(1e-2))
  return train(
    folder,
    model,
    task,
    optimizer,
    train_steps=steps,
    task_feature_lengths={'targets': 32},
    batch_size=2,
    checkpoint_period=6,
    evaluator=functools.partial(Evaluator, batch_size=4),
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory, model, task):
  folder = tmp_path_factory.mktemp('whole')
  run(folder, model, task)
  return folder


def test_it_learns_which_letter_it_reads(folder, model):
  before, after = (
    json.loads((folder / f'evaluation/{moment}.json').read_text())
    for moment in ('before', 'after')
  )
  assert before['metric'] == 'accuracy' and before['num_examples'] == 6
  assert after['loss'] < 0.5 * before['loss']
  assert after['score'] == 1.0
  assert after['predictions'][0]['choices'] == ['a', 'b']
  rows = [r for r in read_metrics(folder) if r['split'] == 'train']
  assert len(rows) == STEPS
  # A target is an example: several of them share a row.
  assert 2 < rows[0]['target_tokens'] <= 8


def test_the_exported_head_and_adapter_predict_the_same(folder, model, task):
  trained = model.load_adapter(folder / 'adapter')
  evaluate = Evaluator(model, task, Partitioner().place(model))
  result = evaluate(model.base, trained)
  after = json.loads((folder / 'evaluation/after.json').read_text())
  assert result['loss'] == pytest.approx(after['loss'], rel=1e-5)
  for leaf in jax.tree.leaves(trained['head']):
    assert np.abs(leaf).max() > 0


def test_stopped_and_started_again_it_ends_with_the_same_weights(
  folder, tmp_path, model, task
):
  run(tmp_path, model, task, steps=12)
  # The settings of a run that was stopped half way.
  (tmp_path / 'evaluation/after.json').unlink()
  run(tmp_path, model, task)
  name = 'adapter/adapter_model.safetensors'
  assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_numbers_are_judged_by_correlation_and_squared_error(model, task):
  model = dataclasses.replace(model, outputs=1)
  regression = tasks.Regression(
    name='scores', train=rows(8), eval=rows(6), texts=('text',)
  )
  trainable = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
  placement = Partitioner().place(model)
  result = Evaluator(model, regression, placement)(model.base, trainable)
  found = [(p['answer'], p['value']) for p in result['predictions']]
  answers, values = np.array(found).T
  assert answers.tolist() == [0, 1, 0, 1, 0, 1]
  assert result['loss'] == pytest.approx(np.mean((answers - values) ** 2))
  assert result['metric'] == 'pearson'
  expected = np.corrcoef(answers, values)[0, 1]
  assert result['score'] == pytest.approx(expected, abs=1e-5)
  assert result['metrics'].keys() == {'pearson', 'spearman'}
  with pytest.raises(ValueError, match=r'letters.* needs 2 output\(s\)'):
    Evaluator(model, task, placement)
