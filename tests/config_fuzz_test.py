"""Damaged gin files and flags: one clear message each, or what they say.

A gin file can import and call anything. So what is damaged here is never an
import or an include, and nothing that is configured is called.
"""

import pathlib
import random
import re

import pytest

from lora_opt import config
from tests import fuzzing

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').rglob('*.gin'))
BASE = [
  'configs/runs/finetune.gin',
  'configs/models/random.gin',
  'configs/lora/all_linear.gin',
  'configs/tasks/word_sequence_reversal.gin',
  'configs/optimizers/adamw.gin',
]
NEEDED = BASE, ['MODEL_DIR=a', 'TRAIN_STEPS=3', 'OPTIMIZER=@lora_opt.adamw()']
NOTHING = (), ()
BINDINGS = [
  *('MODEL_DIR=runs/a', 'TRAIN_STEPS=3', 'BATCH_SIZE = 8'),
  *('OPTIMIZER=@lora_opt.lora_rite()', 'loop.train.eval_period = None'),
  *("TASK_FEATURE_LENGTHS={'targets': 256}", 'lora_opt.adamw.b2 = 0.99'),
  *('LORA_ALPHA=%LORA_RANK', "MODEL_PATH='a b'", 'LIST=[1, (2, 3), "x"]'),
]
_HARMFUL = re.compile(rb'.*(?:import|from|include).*')


@pytest.fixture(autouse=True)
def leave_gin_as_it_was():
  config.load(BASE, ['MODEL_DIR=a', 'TRAIN_STEPS=3'])  # imports take a while
  yield
  config.gin.clear_config()


def damaged(data: bytes, rng: random.Random) -> bytes:
  """Other text with the same imports and includes."""
  while True:
    found = fuzzing.damaged(data, rng)
    if _HARMFUL.findall(found) == _HARMFUL.findall(data):
      return found


def check_file(folder: pathlib.Path, rng: random.Random) -> None:
  file = folder / 'damaged.gin'
  file.write_bytes(damaged(rng.choice(CONFIGS).read_bytes(), rng))
  # Most mistakes need no other files.
  base, flags = rng.choice((NEEDED, NOTHING, NOTHING, NOTHING))
  found = fuzzing.outcome(
    lambda: config.load([*base, str(file)], flags),
    *(file, 'required and not set', 'the value needs itself'),
  )
  if found is None:
    check_reading_again(folder)


def check_flag(folder: pathlib.Path, rng: random.Random) -> None:
  flag = damaged(rng.choice(BINDINGS).encode(), rng)
  flag = flag.decode('utf-8', 'surrogateescape')
  base, flags = rng.choice((NEEDED, NOTHING, NOTHING, NOTHING))
  found = fuzzing.outcome(
    lambda: config.load(base, [*flags, flag]),
    *('--gin.', 'required and not set', 'the value needs itself'),
  )
  if found is None:
    check_reading_again(folder)


def check_reading_again(folder: pathlib.Path) -> None:
  """What was read is what its own text says."""
  settings = dict(config.settings())
  again = folder / 'again.gin'
  again.write_text(config.text(), encoding='utf-8')
  config.load([str(again)])
  assert config.settings() == settings


@pytest.mark.parametrize('check', [check_file, check_flag])
def test_damage_is_named_or_means_what_it_says(tmp_path, check):
  for _, rng in fuzzing.seeds(150):
    check(tmp_path, rng)


@pytest.mark.long
@pytest.mark.parametrize('check', [check_file, check_flag])
@pytest.mark.parametrize('start', range(1000, 11_000, 1000))
def test_much_damage(tmp_path, check, start):
  for _, rng in fuzzing.seeds(1000, start):
    check(tmp_path, rng)
