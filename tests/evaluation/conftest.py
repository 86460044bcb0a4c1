"""A tiny model and the mesh of this process."""

import pytest

from lora_opt.models import LoraConfig, random_model
from lora_opt.training import sharding


@pytest.fixture(scope='session')
def model():
  return random_model(LoraConfig(rank=2), num_layers=2, remat='none')


@pytest.fixture(scope='session')
def mesh():
  return sharding.data_mesh()
