"""What stands beside the parameters: compared, then used, left out or refused.

A name alone makes nothing a copy.
"""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.models.pretrained.assemble import all_finite
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.random_model import random_model
from tests.models.parity import material
from tests.models.pretrained.checkpoint_files import write_folder
from tests.models.pretrained.encoder_configs import PUBLISHED
from tests.models.pretrained.t5_test import CONFIG

HEAD, TABLE = 'lm_head.weight', 'model.embed_tokens.weight'


@pytest.fixture(name='tied')
def _tied(tmp_path):
  """A small Llama whose config.json ties the head; returns its folder."""
  write_folder(tmp_path, random_model(num_layers=1))
  return tmp_path


def change(folder, edit):
  file = folder / 'model.safetensors'
  tensors = load_file(file)
  edit(tensors)
  save_file(tensors, file)
  return tensors


def test_an_equal_head_is_a_copy(tied):
  change(tied, lambda t: t.update({HEAD: t[TABLE].copy()}))
  model = from_folder(tied)
  assert model.config.tie_embeddings and 'head' not in model.base


def test_another_head_is_used_and_merged(tied, caplog, tmp_path_factory):
  tensors = change(tied, lambda t: t.update({HEAD: t[TABLE] * 1.5}))
  model = from_folder(tied)
  assert 'lm_head.weight is used: config.json ties it to model' in caplog.text
  assert not model.config.tie_embeddings
  np.testing.assert_array_equal(model.base['head']['table'], tensors[HEAD])
  folder = tmp_path_factory.mktemp('merged') / 'm'
  model.merge(folder, None, source=tied)
  settings = json.loads((folder / 'config.json').read_text())
  assert settings['tie_word_embeddings'] is False
  again = from_folder(folder)
  assert not again.config.tie_embeddings
  np.testing.assert_array_equal(again.base['head']['table'], tensors[HEAD])


def test_a_head_of_another_shape_is_refused(tied):
  change(tied, lambda t: t.update({HEAD: t[TABLE][:-1]}))
  with pytest.raises(ValueError, match=r'lm_head.* has shape \(261, 32\)'):
    from_folder(tied)


def test_where_the_copy_alone_is_stored_it_is_the_table(tied):
  table = from_folder(tied).base['embedding']['table']
  change(tied, lambda t: t.update({HEAD: t.pop(TABLE)}))
  model = from_folder(tied)
  assert model.config.tie_embeddings
  np.testing.assert_array_equal(model.base['embedding']['table'], table)


@pytest.mark.parametrize('second', ['norm.weight', 'embed_tokens.weight'])
def test_one_parameter_under_two_names(tied, second):
  first = f'model.{second}'
  change(tied, lambda t: t.update({second: t[first].copy()}))
  from_folder(tied)
  change(tied, lambda t: t.update({second: t[first] + 1}))
  with pytest.raises(ValueError, match=f'{second} should be a copy of {first}'):
    from_folder(tied)


FREQUENCIES = 1e4 ** -(np.arange(0, 8, 2) / 8)


@pytest.mark.parametrize(
  'name',
  ['model.layers.0.self_attn.rotary_emb.inv_freq', 'rotary_emb.inv_freq'],
)
@pytest.mark.parametrize('kind', [np.float32, np.float16])
def test_rotary_frequencies(tied, name, kind):
  change(tied, lambda t: t.update({name: FREQUENCIES.astype(kind)}))
  from_folder(tied)
  for wrong in (FREQUENCIES * 1.1, FREQUENCIES[:2], FREQUENCIES * np.nan):
    change(tied, lambda t, wrong=wrong: t.update({name: wrong.astype(kind)}))
    with pytest.raises(ValueError, match='inv_freq.* is not the rotary freq'):
      from_folder(tied)


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('attn.bias', np.ones((1, 1, 32, 32), np.uint8), 'is not a causal mask'),
    ('attn.bias', np.tri(32)[:30], 'is not a causal mask'),
    ('attn.bias', np.float32([1, 2]), 'is not a causal mask'),
    ('attn.masked_bias', np.array(-1, np.float32), 'is not the very negative'),
    ('attn.other_bias', np.zeros(3), 'has unknown tensor'),
  ],
)
def test_masks_of_gpt2(tmp_path, name, value, message):
  _, config = material.read_golden('decoder_gpt2')
  material.write_folder(tmp_path, config)
  change(tmp_path, lambda t: t.update({f'h.1.{name}': value}))
  with pytest.raises(ValueError, match=message):
    from_folder(tmp_path)


T5 = CONFIG | {'tie_word_embeddings': True}


@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_copies_of_the_embedding_of_t5(tmp_path, part):
  material.write_folder(tmp_path, json.dumps(T5))
  name, table = f'{part}.embed_tokens.weight', 'shared.weight'
  change(tmp_path, lambda t: t.update({name: t[table].copy()}))
  expected = from_folder(tmp_path).base['embedding']
  # As safetensors are written that name each tensor once.
  change(tmp_path, lambda t: t.pop(table))
  np.testing.assert_array_equal(
    from_folder(tmp_path).base['embedding'], expected
  )
  change(tmp_path, lambda t: t.update({table: t[name] * 2}))
  with pytest.raises(ValueError, match=f'{name} should be a copy of shared'):
    from_folder(tmp_path)


def test_a_head_of_its_own_on_the_first_t5(tmp_path, tmp_path_factory):
  material.write_folder(tmp_path, json.dumps(T5))
  tensors = change(tmp_path, lambda t: t.update({HEAD: t['shared.weight'] * 2}))
  model = from_folder(tmp_path)
  assert not model.config.tie_embeddings and model.config.scale_output
  np.testing.assert_array_equal(model.base['head']['table'], tensors[HEAD])
  # Untying is said by the tensors: the setting stands for the scale.
  folder = tmp_path_factory.mktemp('merged') / 'm'
  model.merge(folder, None, source=tmp_path)
  again = from_folder(folder)
  assert again.config == model.config


@pytest.mark.parametrize(
  'name', ['bert-base-uncased', 'roberta-base', 'deberta-v3-base']
)
def test_positions_of_encoders(tmp_path, name):
  settings = small(PUBLISHED[name][0])
  material.write_folder(tmp_path, json.dumps(settings), outputs=2)
  kind = settings['model_type'].removesuffix('-v2')
  key = f'{kind}.embeddings.position_ids'
  change(tmp_path, lambda t: t.update({key: np.arange(40)[None]}))
  from_folder(tmp_path, outputs=2)
  change(tmp_path, lambda t: t.update({key: np.arange(1, 41)[None]}))
  with pytest.raises(ValueError, match='position_ids.* is not the numbers'):
    from_folder(tmp_path, outputs=2)


def small(settings):
  sizes = {
    'vocab_size': 262,
    'hidden_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'intermediate_size': 12,
    'max_position_embeddings': 40,
    'position_buckets': 4,
    'pooler_hidden_size': 8,
  }
  return settings | {k: v for k, v in sizes.items() if k in settings}


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('name', ['model.norm.weight', TABLE])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_is_not_finite_is_named(tied, name, value, dtype):
  def edit(tensors):
    tensors[name].flat[-2] = value

  change(tied, edit)
  with pytest.raises(ValueError, match=rf'{name} has 1 values that are not fi'):
    from_folder(tied, dtype=dtype)


def test_what_the_type_cannot_hold_is_named(tied):
  name = 'model.layers.0.mlp.up_proj.weight'
  change(tied, lambda t: t.update({name: t[name].astype(np.float64) * 1e40}))
  with pytest.raises(ValueError, match=rf'{name} has values up to .*e\+3\d'):
    from_folder(tied)


def test_finite_as_numpy_says():
  for dtype in (np.float32, np.float16, jax.numpy.bfloat16):
    for value in (0, -0.0, 65504, 1e-30, np.nan, -np.nan, np.inf, -np.inf):
      x = np.full((2, 3), 1, dtype)
      x[1, 2] = value
      assert all_finite(x) == np.isfinite(x.astype(np.float32)).all()
