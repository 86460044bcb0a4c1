"""T5 folders: heads tied or not, old files, what is refused, merging."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder, read_config
from tests.models.batches import jitted, pair_batch, random_adapter
from tests.models.parity import material

pytestmark = pytest.mark.usefixtures('fast_compile')

# What T5 v1.1 says of itself.
CONFIG = {
  'model_type': 't5',
  'vocab_size': 262,
  'd_model': 16,
  'd_kv': 4,
  'd_ff': 24,
  'num_heads': 2,
  'num_layers': 1,
  'num_decoder_layers': 2,
  'feed_forward_proj': 'gated-gelu',
  'tie_word_embeddings': False,
  'decoder_start_token_id': 258,
  'is_encoder_decoder': True,
}
HEAD, TABLE = 'lm_head.weight', 'shared.weight'
COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')


def write(folder, change=None, **settings):
  """A checkpoint; `change` edits its tensors."""
  material.write_folder(folder, json.dumps(CONFIG | settings))
  file = folder / 'model.safetensors'
  tensors = load_file(file)
  if change is not None:
    change(tensors)
    save_file(tensors, file)
  return tensors


def test_untied_head_is_read_whatever_config_json_says(tmp_path):
  # transformers 5 writes tie_word_embeddings=true in any case.
  settings = {'tie_word_embeddings': True, 'scale_decoder_outputs': False}
  tensors = write(tmp_path, **settings)
  model = from_folder(tmp_path)
  assert not model.config.tie_embeddings and not model.config.scale_output
  np.testing.assert_array_equal(model.base['head']['table'], tensors[HEAD])


def test_no_head_means_a_tied_one(tmp_path):
  write(tmp_path, lambda tensors: tensors.pop(HEAD))
  model = from_folder(tmp_path)
  assert model.config.tie_embeddings and not model.config.scale_output
  assert 'head' not in model.base


def test_copies_and_the_forgotten_bias_of_old_files_are_left_out(tmp_path):
  def add(tensors):
    for name in (*COPIES, HEAD):
      tensors[name] = tensors[TABLE].copy()
    name = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias'
    tensors[f'{name}.weight'] = np.zeros((32, 2), np.float32)

  settings = {'feed_forward_proj': 'relu', 'tie_word_embeddings': True}
  write(tmp_path, add, **settings)
  model = from_folder(tmp_path)
  assert model.config.tie_embeddings and model.config.scale_output
  assert model.base.keys() == {'embedding', 'encoder', 'decoder'}
  kernels = model.base['decoder']['layers']
  assert kernels['plain_mlp']['up']['kernel'].shape == (2, 16, 24)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'feed_forward_proj': 'gated-tanh'}, "feed_forward_proj='gated-tanh' is"),
    ({'tie_encoder_decoder': True}, 'tie_encoder_decoder=True is not'),
    ({'attention_sinks': 4}, 'settings unknown here.*attention_sinks=4'),
    ({'num_decoder_layers': 3}, r'lacks tensor\(s\) decoder\.block\.2'),
    ({'num_decoder_layers': 1}, r'has unknown tensor\(s\) decoder\.block\.1'),
    ({'d_ff': 25}, r'DenseReluDense.* has shape'),
    ({'decoder_start_token_id': 0}, 'has id 258, .* starts with id 0'),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, settings, message):
  write(tmp_path)
  config = json.dumps(CONFIG | settings)
  (tmp_path / 'config.json').write_text(config)
  with pytest.raises(ValueError, match=message):
    from_folder(tmp_path)


def test_decoder_layers_default_to_those_of_the_encoder(tmp_path):
  config = CONFIG | {'num_decoder_layers': None, 'num_layers': 3}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert read_config(tmp_path / 'config.json')[1].num_decoder_layers == 3


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
    {'model_type': 'mt5', 'feed_forward_proj': 'gated-silu'},
  ],
)
def test_settings_are_written_as_they_are_read(tmp_path, settings):
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(CONFIG | settings))
  family, config = read_config(file)
  file.write_text(json.dumps(family.write_config(config)))
  assert read_config(file) == (family, config)


def test_merged_folder_gives_the_logits_of_the_adapter(tmp_path):
  folder = tmp_path / 'base'
  folder.mkdir()
  write(folder)
  model = from_folder(
    folder, lora=LoraConfig('.*layers/.*|head', rank=2), remat='none'
  )
  lora = random_adapter(model)
  model.merge(tmp_path / 'merged', lora, source=folder)
  merged = from_folder(tmp_path / 'merged', remat='none')
  batch = pair_batch(258, ([5, 6, 7], [8, 9]))
  expected = jitted(model, 'logits')(model.base, lora, batch)
  actual = jitted(merged, 'logits')(merged.base, None, batch)
  np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize('target', ['decoder/embedding', '.*'])
def test_an_adapter_of_a_shared_table_cannot_be_merged(tmp_path, target):
  write(tmp_path)
  model = from_folder(tmp_path, lora=LoraConfig(target, rank=2))
  lora = jax.eval_shape(model.init, jax.random.key(0))
  with pytest.raises(ValueError, match='decoder/embedding.*cannot be merged'):
    model.merge(tmp_path / 'merged', lora, source=tmp_path)
  assert not (tmp_path / 'merged').exists()
