"""Hugging Face folders: weights back exactly, clear errors."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.pretrained.huggingface import from_folder, read_config
from lora_opt.models.random_model import random_model
from tests.models.batches import paths
from tests.models.pretrained.checkpoint_files import (
  rewrite_header,
  write_folder,
)


@pytest.fixture(name='folder')
def _folder(tmp_path, tiny):
  write_folder(tmp_path, tiny)
  return tmp_path


def change_config(folder, **settings):
  file = folder / 'config.json'
  changed = json.loads(file.read_text()) | settings
  changed = {key: value for key, value in changed.items() if value != 'absent'}
  file.write_text(json.dumps(changed))


def assert_same_weights(actual, expected):
  for (path, ours), (_, theirs) in zip(
    paths(actual), paths(expected), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs, err_msg=path)


@pytest.mark.parametrize('shards', [1, 3])
def test_round_trip(tmp_path, tiny, shards):
  write_folder(tmp_path, tiny, shards)
  model = from_folder(tmp_path)
  assert model.config == tiny.config
  assert model.name == str(tmp_path)
  assert model.tokenizer.digest == tiny.tokenizer.digest
  assert_same_weights(model.base, tiny.base)


def test_file_of_torch_is_named_where_it_cannot_be_read(folder, monkeypatch):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(ImportError, match=r'pytorch_model\.bin can only be read'):
    from_folder(folder)


class OneDevice:
  """A partitioner that remembers what it was asked to place."""

  def place(self, model):
    self.asked = model.base
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    self.base = jax.tree.map(lambda x: device, model.base)
    return self


def test_weights_are_placed_before_they_are_read(folder, tiny):
  partitioner = OneDevice()
  model = from_folder(folder, partitioner=partitioner)
  assert_same_weights(model.base, tiny.base)
  leaves = jax.tree.leaves(partitioner.asked)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_tied_embeddings(tmp_path):
  tied = random_model(num_layers=1)
  write_folder(tmp_path, tied)
  model = from_folder(tmp_path)
  assert 'head' not in model.base
  assert_same_weights(model.base, tied.base)


def test_bfloat16_files(tmp_path, tiny):
  write_folder(tmp_path, tiny, dtype=ml_dtypes.bfloat16)
  model = from_folder(tmp_path, dtype='bfloat16')
  ours, theirs = (m.base['embedding']['table'] for m in (model, tiny))
  assert ours.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(ours, np.asarray(theirs, ml_dtypes.bfloat16))


@pytest.mark.parametrize(
  ('rope', 'expected'),
  [
    ({'rope_parameters': {'rope_type': 'default', 'rope_theta': 5.0}}, ()),
    ({'rope_theta': 5.0, 'rope_scaling': None}, ()),
    (
      {'rope_theta': 5.0, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      (2.0,) * 4,
    ),
  ],
)
def test_rotary_settings(folder, rope, expected):
  change_config(folder, **{'rope_theta': 'absent'} | rope)
  _, config = read_config(folder / 'config.json')
  assert config.rope_theta == 5.0
  assert config.rope_divisors == expected


def test_llama3_positions(folder):
  scaling = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
  }
  change_config(folder, rope_scaling=scaling)
  _, config = read_config(folder / 'config.json')
  divisors = config.rope_divisors
  # Wavelengths 6.3, 63, 628 and 6283 against 64: kept, between, divided.
  np.testing.assert_allclose(divisors[0], 1.0)
  assert 1.0 < divisors[1] < 8.0
  np.testing.assert_allclose(divisors[2:], 8.0)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (
      {'model_type': 'bart'},
      "model_type='bart' is not supported",
    ),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu' is not supported"),
    ({'attention_bias': True}, r'lacks tensor.*k_proj\.bias'),
    ({'sliding_window': 4096}, 'unknown here.*: sliding_window=4096'),
    ({'rope_scaling': {'type': 'mrope'}}, "type='mrope' is not supported"),
    (
      {'quantization_config': {'quant_method': 'awq'}},
      "quantization_config={'quant_method': 'awq'} says .* take the model that",
    ),
    ({'is_decoder': 0}, 'unknown here.*: is_decoder=0'),
    ({'pruned_heads': {'0': [1]}}, 'unknown here.*: pruned_heads='),
    ({'clip_qkv': 8.0}, 'settings unknown here.*: clip_qkv=8.0; delete'),
    ({'hidden_size': 'absent'}, "config.json has no 'hidden_size'"),
    ({'vocab_size': 100}, 'has 262 tokens, the embedding 100 rows'),
    ({'num_hidden_layers': 3}, r'lacks tensor\(s\) model\.layers\.2.* and 4 m'),
    ({'num_hidden_layers': 1}, r'has unknown tensor\(s\) model\.layers\.1'),
    (
      {'intermediate_size': 60},
      r'down_proj\.weight has shape \(32, 64\), .* calls for \(32, 60\)',
    ),
  ],
)
def test_misfit_is_named(folder, settings, message):
  change_config(folder, **settings)
  with pytest.raises(ValueError, match=message):
    from_folder(folder)


def test_settings_of_published_files_that_say_nothing(folder):
  """Written out by transformers with its defaults, or by tools of training."""
  _, expected = read_config(folder / 'config.json')
  change_config(
    folder,
    is_decoder=False,
    is_encoder_decoder=False,
    add_cross_attention=False,
    pruned_heads={},
    _attn_implementation_autoset=True,
    unsloth_fixed=True,
    unsloth_version='2025.3.19',
    classifier_dropout=0.1,
  )
  assert read_config(folder / 'config.json')[1] == expected


def test_a_setting_of_another_kind_of_model(folder):
  with pytest.raises(ValueError, match=r'is that of a CausalLM.* outputs;'):
    from_folder(folder, outputs=2)


def test_added_tokens_without_a_row_are_text(folder):
  """As Gemma 3's token of an image, which the text models have no row for."""
  tokenizer = Tokenizer.byte_level()
  tokenizer.core.add_special_tokens(['<extra>'])
  tokenizer.core.save(str(folder / 'tokenizer.json'))
  model = from_folder(folder)
  assert model.tokenizer.vocab_size == 262
  assert max(model.tokenizer.encode('a<extra>')) < 256
  # Not those that end a text.
  settings = {'eos_token': '<extra>'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=r'tokenizer and model disagree.*263'):
    from_folder(folder)


@pytest.mark.parametrize(
  'name', ['config.json', 'tokenizer.json', 'model.safetensors']
)
def test_missing_file(folder, name):
  (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=f'no {name} in'):
    from_folder(folder)


def test_missing_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no model folder at .*nowhere'):
    from_folder(tmp_path / 'nowhere')


def test_missing_shard(tmp_path, tiny):
  write_folder(tmp_path, tiny, shards=2)
  (tmp_path / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='no model-00002-of-00002'):
    from_folder(tmp_path)


def test_cut_short(folder):
  file = folder / 'model.safetensors'
  whole = file.read_bytes()
  file.write_bytes(whole[:-100])
  message = f'cut short: {len(whole) - 100} bytes, tensor .* needs {len(whole)}'
  with pytest.raises(ValueError, match=message):
    from_folder(folder)


@pytest.mark.parametrize('size', [0, 5, 8, 300])
def test_cut_within_the_header(folder, size):
  file = folder / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:size])
  with pytest.raises(ValueError, match=rf'\({size} bytes\) is not a complete'):
    from_folder(folder)


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    ({'dtype': 'I32'}, 'tensor model.norm.weight is of type int32, weights mu'),
    ({'shape': [31]}, r'model.norm.weight of .* \(31,\) has 128 bytes by its '),
  ],
)
def test_wrong_header(folder, entry, message):
  rewrite_header(
    folder / 'model.safetensors',
    lambda header: header['model.norm.weight'].update(entry),
  )
  with pytest.raises(ValueError, match=message):
    from_folder(folder)


def test_broken_config(folder):
  (folder / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r'config\.json: not JSON'):
    from_folder(folder)
