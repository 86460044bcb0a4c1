"""Models shared by the tests of this folder."""

import importlib.util

import pytest

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.smollm2 import smollm2_135m
from lora_opt.models.random_model import random_model

# They need torch, which is no dependency of the project.
collect_ignore = ['minilm_live.py', 'parity/reference.py']
collect_ignore_glob = (
  [] if importlib.util.find_spec('torch') else ['**/*_torch_test.py']
)


@pytest.fixture(scope='session')
def smollm2():
  """The default model, float32."""
  return smollm2_135m(LoraConfig())


@pytest.fixture(scope='session')
def tiny():
  """A random decoder with grouped queries and untied embeddings."""
  return random_model(LoraConfig(rank=4), tie_embeddings=False)
