"""A tiny model and its place on the devices of this process."""

import pytest

from lora_opt.models import LoraConfig, random_model
from lora_opt.training.partitioning import Partitioner


@pytest.fixture(scope='session')
def model():
  return random_model(LoraConfig(rank=2), num_layers=2, remat='none')


@pytest.fixture(scope='session')
def placement(model):
  return Partitioner().place(model)
