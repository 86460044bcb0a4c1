"""Folders of ViT, CLIP and SigLIP: settings, names, heads, adapters."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.data.images import Fit
from lora_opt.models import LoraConfig, from_folder, random_vit
from lora_opt.models.pretrained.image_processor import open_processor
from lora_opt.models.pretrained.peft_names import unspelled
from tests.models.batches import random_adapter
from tests.models.parity import material, vision

pytestmark = pytest.mark.usefixtures('fast_compile')

LORA = LoraConfig('.*/(q|v)', rank=2)


def folder_of(tmp_path, name='vit', **changes):
  case = vision.CASES[name]
  _, config = material.read_golden(f'vision_{name}')
  config = json.dumps(json.loads(config) | changes)
  vision.our_model(case, tmp_path, config)
  return tmp_path


@pytest.fixture
def folder(tmp_path):
  return folder_of(tmp_path)


def change_json(file, **changes):
  content = json.loads(file.read_text()) | changes
  file.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_channels': 1}, r'num_channels=1 is not supported; supported: 3'),
    ({'image_size': [12]}, r'image_size=\[12\] is not supported'),
    ({'image_size': 3}, r'patch_height=4 must be at most image_height=3'),
    ({'hidden_act': 'mish'}, "hidden_act='mish' is not supported"),
    ({'qkv_bias': 'yes'}, 'qkv_bias: expected true or false'),
    ({'use_swiglu_ffn': True}, 'settings unknown here.*use_swiglu_ffn'),
  ],
)
def test_settings_are_used_or_refused(folder, changes, message):
  change_json(folder / 'config.json', **changes)
  with pytest.raises(ValueError, match=rf'config\.json.*{message}'):
    from_folder(folder, outputs=3)


@pytest.mark.parametrize(
  ('name', 'part', 'changes', 'message'),
  [
    ('clip', 'vision_config', {'hidden_act': 'x'}, "hidden_act='x'"),
    (
      'clip',
      'vision_config',
      {'rope': 1},
      'vision_config has settings unknown',
    ),
    ('siglip', 'vision_config', {'num_channels': 4}, 'num_channels=4'),
    ('clip', None, {'vision_config_dict': {'image_size': 5}}, 'image_size=12'),
    ('siglip', None, {'new_setting': 5}, 'settings unknown here.*new_setting'),
  ],
)
def test_settings_of_towers_too(tmp_path, name, part, changes, message):
  folder = folder_of(tmp_path, name)
  if part:
    found = json.loads((folder / 'config.json').read_text())[part]
    changes = {part: found | changes}
  change_json(folder / 'config.json', **changes)
  with pytest.raises(ValueError, match=message):
    from_folder(folder, outputs=3)


@pytest.mark.parametrize(
  ('settings', 'fit', 'scale', 'mean'),
  [
    ({}, Fit(224, 224), 1 / 255, 0.5),
    ({'size': 384}, Fit(384, 384), 1 / 255, 0.5),
    ({'size': {'height': 8, 'width': 9}}, Fit(8, 9), 1 / 255, 0.5),
    (
      {'resample': 0, 'do_normalize': False},
      Fit(224, 224, None, 'nearest'),
      1 / 255,
      0,
    ),
    ({'do_rescale': False, 'image_mean': [3, 3, 3]}, Fit(224, 224), 1, 3),
    (
      {'image_processor_type': 'CLIPImageProcessor'},
      Fit(224, 224, 224, 'bicubic'),
      1 / 255,
      0.48145466,
    ),
    (
      {
        'feature_extractor_type': 'CLIPFeatureExtractor',
        'size': 30,
        'crop_size': 20,
        'image_processor_type': None,
      },
      Fit(20, 20, 30, 'bicubic'),
      1 / 255,
      0.48145466,
    ),
    (
      {'image_processor_type': 'SiglipImageProcessor'},
      Fit(224, 224, None, 'bicubic'),
      1 / 255,
      0.5,
    ),
  ],
)
def test_preprocessor_config_is_read(tmp_path, settings, fit, scale, mean):
  settings = {'image_processor_type': 'ViTImageProcessor'} | settings
  file = tmp_path / 'preprocessor_config.json'
  file.write_text(json.dumps(settings))
  found = open_processor(tmp_path)
  assert (found.fit, found.scale, found.mean[0]) == (fit, scale, mean)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'image_processor_type': 'ConvNextImageProcessor'}, 'is not supported'),
    ({'do_resize': False}, 'do_resize=False is not supported; supported: True'),
    ({'size': {'shortest_edge': 30}}, 'leaves images of any proportions'),
    ({'size': {'longest_edge': 30}}, "size={'longest_edge': 30} is not"),
    ({'size': 'large'}, 'size: expected an object'),
    ({'size': 0}, 'size: height: expected a whole number'),
    ({'resample': 9}, 'resample=9 is not supported'),
    ({'image_std': [1, 1, 0]}, 'image_std: expected a finite number above 0'),
    ({'image_mean': [1]}, 'image_mean: expected a list of 3'),
    ({'crop_pct': 0.9}, 'settings unknown here.*crop_pct'),
    ({'do_pad': True}, 'do_pad=True is not supported'),
  ],
)
def test_other_preprocessors_are_refused(tmp_path, settings, message):
  file = tmp_path / 'preprocessor_config.json'
  settings = {'image_processor_type': 'ViTImageProcessor'} | settings
  file.write_text(json.dumps(settings))
  with pytest.raises(
    ValueError, match=rf'preprocessor_config\.json.*{message}'
  ):
    open_processor(tmp_path)


def test_a_folder_without_one_is_refused(folder):
  (folder / 'preprocessor_config.json').unlink()
  with pytest.raises(FileNotFoundError, match='how the weights want images'):
    from_folder(folder, outputs=3)


def test_a_folder_without_a_head_and_with_more_than_is_read(folder):
  """As google/vit-base-patch16-224-in21k, and as one of masked pretraining."""
  tensors = load_file(folder / 'model.safetensors')
  bare = {
    name.removeprefix('vit.'): tensor
    for name, tensor in tensors.items()
    if not name.startswith('classifier')
  }
  bare['pooler.dense.weight'] = np.zeros((16, 16), np.float32)
  bare['pooler.dense.bias'] = np.zeros(16, np.float32)
  bare['embeddings.mask_token'] = np.zeros((1, 1, 16), np.float32)
  save_file(bare, folder / 'model.safetensors')
  model = from_folder(folder, lora=LORA, outputs=7)
  assert model.drawn == ('head/out',)
  np.testing.assert_array_equal(
    model.base['positions'], tensors['vit.embeddings.position_embeddings'][0]
  )


def test_a_head_for_other_labels_needs_a_new_one(folder):
  with pytest.raises(ValueError, match=r'outputs=5 .*new_head = True'):
    from_folder(folder, lora=LORA, outputs=5)
  model = from_folder(folder, lora=LORA, outputs=5, new_head=True)
  assert model.init(jax.random.key(0))['head']['out']['bias'].shape == (5,)


def test_adapters_of_older_versions_of_transformers_are_read(folder, tmp_path):
  model = from_folder(folder, lora=LORA, outputs=3)
  trainable = random_adapter(model)
  place = tmp_path / 'adapter'
  model.export(place, trainable)
  file = place / 'adapter_model.safetensors'
  tensors = {
    unspelled(model.family, name): tensor
    for name, tensor in load_file(file).items()
  }
  assert any('.attention.attention.query.lora_A' in name for name in tensors)
  save_file(tensors, file)
  change_json(place / 'adapter_config.json', target_modules=['query', 'value'])
  back = model.load_adapter(place)
  assert jax.tree.all(
    jax.tree.map(lambda x, y: bool((x == y).all()), back, trainable)
  )
  change_json(place / 'adapter_config.json', target_modules=['q_proj'])
  with pytest.raises(ValueError, match='which adapts nothing'):
    model.load_adapter(place)


def test_a_model_of_our_own_is_written_and_read_back(tmp_path):
  model = random_vit(LORA, outputs=2, image_width=20, qkv_bias=False)
  trainable = random_adapter(model)
  model.merge(tmp_path / 'merged', trainable, labels=('cat', 'dog'))
  again = from_folder(tmp_path / 'merged')
  assert again.config == model.config and again.tokenizer == model.tokenizer
  assert again.labels == ('cat', 'dog')
  batch = {
    'images': np.full((1, 16, 20, 3), 77, np.uint8),
    'labels': np.zeros((1, 1), np.float32),
  }
  np.testing.assert_allclose(
    again.predict(again.base, None, batch),
    model.predict(model.base, trainable, batch),
    atol=1e-5,
  )


def test_a_tower_can_only_be_copied(tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  folder = folder_of(source, 'clip')
  model = from_folder(folder, lora=LORA, outputs=3)
  trainable = random_adapter(model)
  with pytest.raises(ValueError, match='give source'):
    model.merge(tmp_path / 'none', trainable)
  model.merge(tmp_path / 'merged', trainable, source=folder)
  again = from_folder(tmp_path / 'merged', outputs=3)
  assert again.config == model.config and again.tokenizer == model.tokenizer
