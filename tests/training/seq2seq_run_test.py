"""An encoder-decoder through a whole run: train, go on, score, export."""

import functools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import lora_opt
from lora_opt.data import tasks
from lora_opt.evaluation import run as evaluation
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.models import LoraConfig, random_seq2seq
from lora_opt.training.loop import train

pytestmark = pytest.mark.usefixtures('fast_compile')

WORDS = ('red', 'blue', 'green')
WEIGHTS = 'adapter/adapter_model.safetensors'


def reversed_words(count, start=0):
  """Two words to say in the other order."""
  pairs = [
    (WORDS[i % 3], WORDS[(i // 3) % 3], i) for i in range(start, start + count)
  ]
  return [
    {'question': f'{a} {b} {i}', 'answer': f'{b} {a}'} for a, b, i in pairs
  ]


@pytest.fixture(scope='module')
def model():
  return random_seq2seq(
    LoraConfig(rank=2, dropout=0.1),
    num_layers=1,
    num_decoder_layers=1,
    remat='none',
  )


@pytest.fixture(scope='module')
def task():
  return tasks.Generation(
    name='reverse',
    train=reversed_words(30),
    eval=reversed_words(3, start=90),
    chat=False,
  )


evaluator = functools.partial(
  Evaluator, max_new_tokens=6, batch_size=4, length=64
)


def run(folder, model, task, steps, **settings):
  return train(
    folder,
    model,
    task,
    lora_opt.lora_rite(2e-2),
    train_steps=steps,
    task_feature_lengths={'inputs': 48, 'targets': 32},
    batch_size=2,
    evaluator=evaluator,
    checkpoint_period=3,
    diagnostics=False,
    **settings,
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory, model, task):
  folder = tmp_path_factory.mktemp('run')
  run(folder, model, task, 6)
  return folder


@pytest.mark.long
def test_it_learns_and_is_scored_before_and_after(folder):
  before, after = (
    json.loads((folder / f'evaluation/{moment}.json').read_text())
    for moment in ('before', 'after')
  )
  assert after['loss'] < before['loss']
  assert [p['reference'] for p in after['predictions']] == [
    row['answer'] for row in reversed_words(3, start=90)
  ]


def test_it_goes_on_from_a_checkpoint_to_the_same_adapter(
  folder, tmp_path, model, task
):
  run(tmp_path, model, task, 3)
  (tmp_path / 'evaluation/after.json').unlink()
  run(tmp_path, model, task, 6)
  assert (tmp_path / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_the_adapter_is_peft_s(folder):
  tensors = load_file(folder / WEIGHTS)
  name = 'base_model.model.decoder.block.0.layer.1.EncDecAttention.q.lora_B'
  assert np.abs(tensors[f'{name}.weight']).max() > 0
  config = json.loads((folder / 'adapter/adapter_config.json').read_text())
  assert config['task_type'] == 'SEQ_2_SEQ_LM'


def test_choices_of_the_exported_adapter_are_scored(folder, model):
  rows = [
    {'question': f'{i}?', 'choices': list(WORDS), 'answer': i % 3}
    for i in range(4)
  ]
  choice = tasks.MultipleChoice(name='which', train=rows, eval=rows, chat=False)
  scores = evaluation.score(folder, model, choice, evaluator=evaluator)
  lines = (scores / 'which.jsonl').read_text().splitlines()
  assert len(lines) == 4
  for prediction in map(json.loads, lines):
    best = int(np.argmax(prediction['log_likelihoods']))
    assert prediction['prediction'] == prediction['choices'][best]
