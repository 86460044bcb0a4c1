"""Folders of BERT, RoBERTa and DeBERTa: sizes, names, heads, wrong settings."""

import json
import math
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.devices.partitioning import MESH_AXES, Partitioner
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.assemble import head_names, parameter_names
from lora_opt.models.pretrained.family import slots
from lora_opt.models.pretrained.huggingface import from_folder, read_config
from tests.models.parity import material
from tests.models.pretrained.encoder_configs import PUBLISHED

# What real checkpoints hold besides the encoder.
EXTRAS = {
  'bert': (
    'cls.predictions.bias',
    'cls.predictions.transform.dense.weight',
    'cls.seq_relationship.weight',
    'bert.embeddings.position_ids',
    'bert.pooler.dense.weight',
    'bert.pooler.dense.bias',
  ),
  'roberta': (
    'lm_head.dense.weight',
    'lm_head.layer_norm.bias',
    'roberta.embeddings.position_ids',
    'roberta.pooler.dense.weight',
  ),
  'deberta-v2': (
    'lm_predictions.lm_head.bias',
    'mask_predictions.dense.weight',
    'deberta.embeddings.position_embeddings.weight',
  ),
}


def read(tmp_path, settings):
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  return read_config(tmp_path / 'config.json')


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes_to_the_last_parameter(tmp_path, name):
  settings, parameters = PUBLISHED[name]
  family, config = read(tmp_path, settings)
  tree = family.abstract_base(config), family.abstract_head(config, 2)
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) == parameters


@pytest.mark.parametrize('prefixed', [True, False])
@pytest.mark.parametrize(
  'name', ['bert-base-uncased', 'roberta-base', 'deberta-v3-base']
)
def test_names_of_a_real_checkpoint_map_forth_and_back(
  tmp_path, name, prefixed
):
  family, config = read(tmp_path, PUBLISHED[name][0])
  base = slots(family.abstract_base(config), family.names)
  stored = [*base, *EXTRAS[PUBLISHED[name][0]['model_type']]]
  if not prefixed:
    stored = [n.removeprefix(family.prefix) for n in stored]
  found = parameter_names(family, config, dict.fromkeys(stored))
  assert found.keys() == base.keys()
  places = {(slot.path, slot.layer) for slot in base.values()}
  assert len(places) == len(base)


def test_names_of_the_first_checkpoints_are_understood(tmp_path):
  family, config = read(tmp_path, PUBLISHED['bert-base-uncased'][0])
  base = slots(family.abstract_base(config), family.names)
  old = [
    re.sub(r'(?<=LayerNorm\.)(weight|bias)$', lambda m: OLD[m[0]], name)
    for name in base
  ]
  found = parameter_names(family, config, dict.fromkeys(old))
  assert found['bert.embeddings.LayerNorm.weight'].endswith('gamma')
  assert found.keys() == base.keys()


OLD = {'weight': 'gamma', 'bias': 'beta'}


@pytest.fixture
def folder(tmp_path):
  _, config = material.read_golden('encoder_bert_relu')
  material.write_folder(tmp_path, config, outputs=2)
  return tmp_path


def change_tensors(folder, change):
  tensors = load_file(folder / 'model.safetensors')
  change(tensors)
  save_file(tensors, folder / 'model.safetensors')


def test_training_starts_from_the_head_of_the_checkpoint(folder):
  model = from_folder(folder, lora=LoraConfig(rank=2))
  head = model.init(jax.random.key(0))['head']
  stored = load_file(folder / 'model.safetensors')
  np.testing.assert_array_equal(
    head['dense']['kernel'], stored['bert.pooler.dense.weight'].T
  )
  np.testing.assert_array_equal(
    head['out']['kernel'], stored['classifier.weight'].T
  )
  # Buffers of a training step: never those of the model itself.
  assert head['out']['kernel'] is not model.head['out']['kernel']


def test_weights_are_read_onto_the_mesh_of_a_partitioner(folder):
  model = from_folder(
    folder, lora=LoraConfig(rank=2), partitioner=Partitioner()
  )
  plain = from_folder(folder, lora=LoraConfig(rank=2))
  for x, y in zip(*map(jax.tree.leaves, (model.base, plain.base)), strict=True):
    assert x.sharding.mesh.axis_names == MESH_AXES
    np.testing.assert_array_equal(x, y)


def test_what_a_checkpoint_lacks_of_the_head_is_drawn(folder):
  def remove(tensors):
    for name in ('classifier.weight', 'classifier.bias'):
      del tensors[name]

  change_tensors(folder, remove)
  model = from_folder(folder, lora=LoraConfig(rank=2), outputs=5)
  assert model.head.keys() == {'dense'}
  head = model.init(jax.random.key(0))['head']
  assert head['out']['kernel'].shape == (16, 5)
  assert np.abs(head['out']['kernel']).max() > 0
  family, tree = model.family, {'head': head}
  assert len(head_names(family, tree, slots(tree, family.names))) == 4


def test_a_folder_of_sentence_transformers_says_what_is_pooled(folder):
  (folder / '1_Pooling').mkdir()
  file = folder / '1_Pooling' / 'config.json'
  modes = {'pooling_mode_mean_tokens': True, 'pooling_mode_cls_token': False}
  file.write_text(json.dumps({'word_embedding_dimension': 16} | modes))
  model = from_folder(folder, lora=LoraConfig(rank=2))
  assert (model.config.pooling, model.config.pooler) == ('mean', None)
  assert model.init(jax.random.key(0))['head'].keys() == {'out'}
  file.write_text(json.dumps({'pooling_mode_max_tokens': True}))
  with pytest.raises(ValueError, match='max_tokens is not supported'):
    from_folder(folder)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
    ({'is_decoder': True}, 'is_decoder'),
    ({'hidden_act': 'mish'}, "hidden_act='mish'"),
    ({'num_attention_heads': 5}, 'embed_dim=16 must be a multiple'),
    ({'new_setting': 3}, 'new_setting=3'),
    ({'model_type': 'deberta-v2', 'conv_kernel_size': 3}, 'conv_kernel_size'),
    ({'model_type': 'deberta-v2', 'pos_att_type': 'p2p'}, "'p2p'"),
    (
      {'model_type': 'deberta-v2', 'pos_att_type': 'c2p'},
      'pos_att_type',  # without relative_attention
    ),
  ],
)
def test_settings_that_are_not_supported_are_refused(folder, change, message):
  settings = json.loads((folder / 'config.json').read_text())
  settings.pop('is_decoder'), settings.pop('add_cross_attention')
  (folder / 'config.json').write_text(json.dumps(settings | change))
  with pytest.raises(ValueError, match=message):
    from_folder(folder)


def test_a_head_of_another_size_is_named(folder):
  with pytest.raises(ValueError, match=r'classifier.bias .*\(2,\)'):
    from_folder(folder, outputs=3)


def test_an_unknown_tensor_is_named(folder):
  change_tensors(folder, lambda t: t.update(bert_extra=np.zeros(1, 'f4')))
  with pytest.raises(ValueError, match='unknown tensor.* bert_extra'):
    from_folder(folder)
