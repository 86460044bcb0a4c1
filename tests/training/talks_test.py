"""Conversations and preferences, trained as configurations have them."""

import json
import math

import pytest

from lora_opt import config
from lora_opt.evaluation.history import read_metrics
from lora_opt.training import loop

pytestmark = pytest.mark.usefixtures('fast_compile', 'leave_gin_as_it_was')

WORDS = ('red', 'blue', 'green', 'black', 'white')


def write(folder, name, make):
  home = folder / 'data' / name
  home.mkdir(parents=True)
  for split, count in (('train', 24), ('test', 6)):
    lines = (json.dumps(make(i)) + '\n' for i in range(count))
    (home / f'{split}.jsonl').write_text(''.join(lines))


def run(folder, files, *bindings):
  config.load(
    [
      'configs/runs/finetune.gin',
      'configs/models/random.gin',
      'configs/lora/query_value.gin',
      'configs/optimizers/adamw.gin',
      *files,
    ],
    [
      f"MODEL_DIR='{folder / 'run'}'",
      f"DATA_DIR='{folder / 'data'}'",
      'BATCH_SIZE=4',
      'PEAK_LEARNING_RATE=0.1',
      'loop.train.diagnostics=False',
      "models.random_model.remat='none'",
      'models.random_model.num_layers=1',
      *bindings,
    ],
    called=[loop.train],
  )
  config.build(loop.train)()
  after = json.loads((folder / 'run/evaluation/after.json').read_text())
  before = json.loads((folder / 'run/evaluation/before.json').read_text())
  return before, after


def talk(i):
  first, second = WORDS[i % 5], WORDS[(i + 1) % 5]
  texts = (f'Say {first}', first, f'Say {second}', second)
  return {
    'conversations': [
      {'from': ('human', 'gpt')[n % 2], 'value': text}
      for n, text in enumerate(texts)
    ]
  }


@pytest.mark.long
def test_conversations_are_learned(tmp_path):
  write(tmp_path, 'talks', talk)
  before, after = run(
    tmp_path,
    ['configs/tasks/conversations.gin'],
    'TRAIN_STEPS=12',
    "CONVERSATIONS='talks'",
    "MESSAGES='conversations'",
  )
  assert after['metric'] == 'likelihood'
  assert after['loss'] < before['loss'] - 0.2
  # Every answer and its end, of bytes: 2 x (4 + 1) of red and blue, say.
  (first, *_) = after['predictions']
  assert first['tokens'] == [len('red') + len('blue') + 2]
  rows = read_metrics(tmp_path / 'run')
  assert all(
    row['target_tokens'] > 0 for row in rows if row['split'] == 'train'
  )


def preference(i):
  first, second = WORDS[i % 5], WORDS[(i + 1) % 5]
  return {'prompt': f'Say {first}', 'chosen': first, 'rejected': second}


def test_preferences_are_learned(tmp_path):
  write(tmp_path, 'pairs', preference)
  before, after = run(
    tmp_path,
    ['configs/runs/dpo.gin', 'configs/tasks/preferences.gin'],
    'TRAIN_STEPS=12',
    "PREFERENCES='pairs'",
    'MICROBATCHES=2',
    'BETA=0.5',
  )
  assert before['metric'] == after['metric'] == 'reward_accuracy'
  # Adapters begin at B = 0: nothing is gained on the base.
  assert before['score'] == 0.5
  assert before['metrics']['reward_margin']['score'] == 0
  assert before['loss'] == pytest.approx(math.log(2), abs=1e-6)
  assert after['score'] > 0.5
  assert after['metrics']['reward_margin']['score'] > 0
  assert after['loss'] < before['loss']
  rows = [r for r in read_metrics(tmp_path / 'run') if r['split'] == 'train']
  # Adapted and bare log-likelihoods, of a few nats to some dozen, come from two
  # programs, whose sums processors may take in different orders.
  assert rows[0]['rewards/margin'] == pytest.approx(0, abs=1e-5)
  assert rows[0]['loss'] == pytest.approx(math.log(2), abs=1e-6)
  assert rows[-1]['rewards/margin'] > 0
  assert 0 <= rows[-1]['rewards/accuracy'] <= 1
