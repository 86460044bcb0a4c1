"""A tiny model and its place on the devices of this process."""

import importlib.util

import pytest

from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, random_model

# Live beside lm-eval, which launch/integrations.sh installs.
collect_ignore = [
  'lm_eval_torch_test.py'
  for name in ('lm_eval', 'torch')
  if importlib.util.find_spec(name) is None
]


@pytest.fixture(scope='session')
def model():
  return random_model(LoraConfig(rank=2), num_layers=2, remat='none')


@pytest.fixture(scope='session')
def placement(model):
  return Partitioner().place(model)
