"""Adapters in PEFT's format, merged by hand without our adapter code."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.assemble import assemble
from lora_opt.models.pretrained.peft import import_adapter
from lora_opt.models.random_model import random_model
from lora_opt.models.start import pissa
from tests.models.batches import (
  hugging_face_tensors,
  jitted,
  random_adapter,
  row_batch,
)
from tests.models.pretrained.checkpoint_files import in_memory

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'


def merged_by_hand(folder, model):
  """W + scale * B @ A for every adapted weight, in Hugging Face's layout."""
  config = json.loads((folder / CONFIG).read_text())
  root = math.sqrt(config['r']) if config['use_rslora'] else config['r']
  scale = config['lora_alpha'] / root
  factors = load_file(folder / WEIGHTS)
  tensors, used = hugging_face_tensors(model), 0
  for name, weight in tensors.items():
    module = name.removesuffix('.weight')
    key = f'base_model.model.{module}.lora_{{}}.weight'
    if key.format('A') not in factors:
      continue
    assert module.rpartition('.')[2] in config['target_modules']
    a, b = factors[key.format('A')], factors[key.format('B')]
    assert a.dtype == b.dtype == np.float32
    assert a.shape[0] == b.shape[1] == config['r']
    tensors[name] = weight + scale * (b @ a)
    used += 2
  assert used == len(factors)
  names = model.family.names
  return assemble('merged', model.base, names, in_memory(tensors), 'float32')


@pytest.mark.parametrize(
  'config',
  [
    LoraConfig(rank=4, alpha=6),
    LoraConfig('.*/(q|k|down)', rank=3, alpha=6, rslora=True),
  ],
)
def test_merged_export_gives_our_logits(tmp_path, tiny, config):
  model = dataclasses.replace(tiny, lora_config=config)
  lora = random_adapter(model)
  model.export(tmp_path, lora)
  batch = row_batch([5, 6, 7, 8, 9], [20, 21, 22])
  merged = merged_by_hand(tmp_path, model)
  actual = jitted(tiny, 'logits')(merged, None, batch)
  expected = jitted(model, 'logits')(model.base, lora, batch)
  np.testing.assert_allclose(actual, expected, atol=1e-4)
  base = jitted(tiny, 'logits')(model.base, None, batch)
  assert abs(base - expected).max() > 0.05


def test_merged_export_of_smollm2_gives_our_logits(tmp_path, smollm2):
  lora = random_adapter(smollm2, spread=0.02)
  smollm2.export(tmp_path, lora)
  text = '<|im_start|>user\nWhat is 7 plus 5?<|im_end|>\n'
  batch = row_batch(smollm2.tokenizer.encode(text))
  merged = merged_by_hand(tmp_path, smollm2)
  actual = jitted(smollm2, 'logits')(merged, None, batch)
  expected = jitted(smollm2, 'logits')(smollm2.base, lora, batch)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)
  base = jitted(smollm2, 'logits')(smollm2.base, None, batch)
  assert abs(base - expected).max() > 0.5


def test_files_are_what_peft_reads(tmp_path, tiny):
  model = dataclasses.replace(
    tiny, lora_config=LoraConfig('.*/(q|v|up)', rank=4, alpha=8, dropout=0.1)
  )
  model.export(tmp_path / 'deep' / 'adapter', model.init(jax.random.key(0)))
  assert sorted(p.name for p in (tmp_path / 'deep/adapter').iterdir()) == [
    CONFIG,
    WEIGHTS,
  ]
  config = json.loads((tmp_path / 'deep/adapter' / CONFIG).read_text())
  assert config == {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': 'random',
    'target_modules': ['q_proj', 'up_proj', 'v_proj'],
    'r': 4,
    'lora_alpha': 8,
    'use_rslora': False,
    'use_dora': False,
    'lora_dropout': 0.1,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  tensors = load_file(tmp_path / 'deep/adapter' / WEIGHTS)
  q = 'base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight'
  up = 'base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight'
  assert tensors[q.format('A')].shape == (4, 32)
  assert tensors[up.format('B')].shape == (64, 4)
  assert len(tensors) == 2 * 2 * 3


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip_is_exact(tmp_path, tiny, dtype):
  config = LoraConfig(rank=4, alpha=0.5, dtype=dtype)
  model = dataclasses.replace(tiny, lora_config=config)
  lora = random_adapter(model)
  model.export(tmp_path, lora)
  back = import_adapter(tmp_path, model)
  assert jax.tree.structure(back) == jax.tree.structure(lora)
  for ours, theirs in zip(*map(jax.tree.leaves, (back, lora)), strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (LoraConfig(rank=2), 'r is 4, the model has 2'),
    (LoraConfig(rank=4, alpha=1), 'lora_alpha is 32, the model has 1'),
    (LoraConfig(rank=4, rslora=True), 'use_rslora is False, the model has T'),
    (LoraConfig('.*/q', rank=4), r'the model adapts layers/attention/q\. Set '),
  ],
)
def test_another_model_is_refused(tmp_path, tiny, config, message):
  tiny.export(tmp_path, tiny.init(jax.random.key(0)))
  model = dataclasses.replace(tiny, lora_config=config)
  with pytest.raises(ValueError, match=message):
    import_adapter(tmp_path, model)


def test_other_kinds_of_adapter_are_refused(tmp_path, tiny):
  tiny.export(tmp_path, tiny.init(jax.random.key(0)))
  config = json.loads((tmp_path / CONFIG).read_text()) | {'use_dora': True}
  (tmp_path / CONFIG).write_text(json.dumps(config))
  with pytest.raises(ValueError, match='use_dora is True, the model has F'):
    import_adapter(tmp_path, tiny)


@pytest.mark.parametrize('change', ['drop', 'add', 'reshape'])
def test_wrong_tensors_are_named(tmp_path, tiny, change):
  tiny.export(tmp_path, tiny.init(jax.random.key(0)))
  tensors = load_file(tmp_path / WEIGHTS)
  name = 'base_model.model.model.layers.1.mlp.up_proj.lora_A.weight'
  if change == 'drop':
    del tensors[name]
  elif change == 'add':
    name = name.replace('layers.1', 'layers.2')
    tensors[name] = np.zeros((4, 32), np.float32)
  else:
    tensors[name] = np.zeros((4, 31), np.float32)
  save_file(tensors, tmp_path / WEIGHTS)
  with pytest.raises(ValueError, match=name):
    import_adapter(tmp_path, tiny)


@pytest.mark.parametrize('name', [WEIGHTS, CONFIG])
def test_missing_file_is_named(tmp_path, tiny, name):
  tiny.export(tmp_path, tiny.init(jax.random.key(0)))
  (tmp_path / name).unlink()
  with pytest.raises(FileNotFoundError, match=f'no {name} in'):
    import_adapter(tmp_path, tiny)


def test_damaged_files_are_named(tmp_path, tiny):
  tiny.export(tmp_path, tiny.init(jax.random.key(0)))
  file = tmp_path / WEIGHTS
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r'adapter_model.* is cut short'):
    import_adapter(tmp_path, tiny)
  (tmp_path / CONFIG).write_text('{')
  with pytest.raises(ValueError, match=r'adapter_config\.json: not JSON'):
    import_adapter(tmp_path, tiny)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'init_lora_weights': 'pissa_niter_4'}, 'took a part out of the base'),
    ({'init_lora_weights': 'olora'}, 'path_initial_model_for_weight_conv'),
    ({'layer_replication': [[0, 2]]}, 'layer_replication=.* not supported'),
  ],
)
def test_what_an_adapter_does_not_say_is_refused(
  tmp_path, tiny, settings, message
):
  tiny.export(tmp_path, tiny.init(jax.random.key(0)))
  config = json.loads((tmp_path / CONFIG).read_text()) | settings
  (tmp_path / CONFIG).write_text(json.dumps(config))
  with pytest.raises(ValueError, match=message):
    import_adapter(tmp_path, tiny)
  config |= {key: None for key in settings} | {'init_lora_weights': 'gaussian'}
  (tmp_path / CONFIG).write_text(json.dumps(config))
  import_adapter(tmp_path, tiny)


def test_model_without_adapter(tmp_path, tiny):
  model = dataclasses.replace(tiny, lora_config=None)
  with pytest.raises(ValueError, match='model random has no adapter'):
    model.export(tmp_path, {})


def test_names_cover_the_whole_tree(tiny):
  assert set(tiny.family.names) >= {
    f'{p}/kernel' if p.startswith('layers/') else f'{p}/table'
    for p in tiny.config.projections
  }


def test_adapter_that_started_inside_the_base(tmp_path):
  settings = LoraConfig('.*/q', rank=2, alpha=3, start=pissa, rslora=True)
  model = random_model(settings)
  start = model.init(jax.random.key(0))
  lora = jax.tree.map(lambda x, d: x + d, start, random_adapter(model))
  model.export(tmp_path, lora)
  config = json.loads((tmp_path / CONFIG).read_text())
  assert config['r'] == 4
  scale = config['lora_alpha'] / math.sqrt(config['r'])
  np.testing.assert_allclose(scale, settings.scale)
  tensors = load_file(tmp_path / WEIGHTS)
  name = 'base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight'
  a, b = (tensors[name.format(factor)] for factor in 'AB')
  now, then = (tree['layers']['attention']['q'] for tree in (lora, start))
  moved = (
    now['lora_a'][1] @ now['lora_b'][1] - then['lora_a'][1] @ then['lora_b'][1]
  )
  np.testing.assert_allclose(b @ a, moved.T, atol=1e-5)
  back = model.load_adapter(tmp_path)
  for ours, theirs in zip(*map(jax.tree.leaves, (back, lora)), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  other = random_model(settings, seed=1)
  with pytest.raises(ValueError, match='did not start from the weights that'):
    other.load_adapter(tmp_path)
