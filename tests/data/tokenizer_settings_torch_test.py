"""The defaults of classes against those of transformers."""

import importlib
import inspect

import pytest
import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from lora_opt.data import tokenizer_settings
from lora_opt.data.tokenizer import Tokenizer

NAMES = ('bos', 'eos', 'pad')


def defaults_of(cls):
  """By name; a class without arguments of its own has its parent's."""
  for one in cls.__mro__:
    found = inspect.signature(one.__init__).parameters
    if 'eos_token' in found or 'pad_token' in found:
      tokens = {n: found.get(f'{n}_token') for n in NAMES}
      return {n: str(p.default) for n, p in tokens.items() if p and p.default}
  return {}


def class_of(name):
  found = getattr(transformers, name, None)
  if found is None:
    module = name.removesuffix('Tokenizer').lower()
    module = f'transformers.models.{module}.tokenization_{module}'
    found = getattr(importlib.import_module(module), name)
  return found


@pytest.mark.parametrize('name', sorted(tokenizer_settings._BY_CLASS))
def test_defaults_are_those_of_the_class(name):
  ours = tokenizer_settings._class_defaults({'tokenizer_class': name}, {})
  assert ours == defaults_of(class_of(name))


@pytest.mark.parametrize('model', sorted(tokenizer_settings._BY_MODEL))
def test_models_have_the_class_of_transformers(model):
  ours = f'{tokenizer_settings._BY_MODEL[model]}Tokenizer'
  theirs = TOKENIZER_MAPPING_NAMES[model].removesuffix('Fast')
  config = {'model_type': model}
  assert tokenizer_settings._class_defaults({}, config) == defaults_of(
    class_of(theirs)
  )
  assert defaults_of(class_of(ours)) == defaults_of(class_of(theirs))


def test_gpt2_without_a_word_on_its_end(tmp_path):
  core = Tokenizer.byte_level().core
  core.add_special_tokens(['<|endoftext|>'])
  core.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
  ours = Tokenizer.from_folder(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert ours.eos_id == core.token_to_id('<|endoftext|>')
  assert theirs.eos_token == '<|endoftext|>'
