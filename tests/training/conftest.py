"""A tiny model and task that train in seconds."""

import importlib.util

import pytest

from lora_opt.data import tasks
from lora_opt.models import LoraConfig, random_model

# Compared with live where torch is installed.
collect_ignore_glob = (
  [] if importlib.util.find_spec('torch') else ['*_torch_test.py']
)
WORDS = ('red', 'blue', 'green', 'black', 'white')


def rows(count, start=0):
  return [
    {'question': f'Say {WORDS[i % 5]} {i}', 'answer': WORDS[i % 5]}
    for i in range(start, start + count)
  ]


@pytest.fixture(scope='session')
def model():
  lora = LoraConfig(rank=2, dropout=0.1)
  return random_model(lora, num_layers=1, remat='none')


@pytest.fixture(scope='session')
def task():
  return tasks.Generation(
    name='say', train=rows(40), eval=rows(6, start=100), chat=False
  )


@pytest.fixture(scope='session')
def choice_task():
  def choices(count, start=0):
    return [
      {'question': row['question'], 'choices': list(WORDS), 'answer': i % 5}
      for i, row in enumerate(rows(count, start))
    ]

  return tasks.MultipleChoice(
    name='which', train=choices(40), eval=choices(7, start=100), chat=False
  )
