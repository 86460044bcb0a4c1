"""adapter_config.json: what is used, what is refused and why, and damage."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from absl import logging
from safetensors.numpy import load_file, save_file

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.adapter_check import check_adapter
from lora_opt.models.pretrained.adapter_config import read_adapter_config
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.pretrained.peft import import_adapter
from lora_opt.models.random_encoder import random_encoder
from tests import fuzzing
from tests.models.batches import random_adapter

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


@pytest.fixture(name='folder')
def _folder(tmp_path, tiny):
  tiny.export(tmp_path, random_adapter(tiny))
  return tmp_path


def change(folder, **settings):
  file = folder / CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'peft_type': 'IA3'}, "peft_type='IA3' is not supported"),
    ({'peft_type': None}, 'peft_type=None is not supported'),
    ({'task_type': 'SEQ_CLS'}, "task_type is 'SEQ_CLS', the model is of CAUSA"),
    ({'task_type': 3}, 'task_type: expected a text, found 3'),
    ({'fan_in_fan_out': True}, 'stores its linear maps as GPT-2 does'),
    ({'fan_in_fan_out': 'no'}, 'fan_in_fan_out: expected true or false'),
    ({'bias': 'some'}, "bias='some' is not supported"),
    ({'bias': True}, 'bias=True is not supported'),
    ({'r': '4'}, "r: expected a whole number .*'4'"),
    ({'r': 4.0}, 'r: expected a whole number .*4.0'),
    ({'r': 10**9}, 'r: expected a whole number'),
    ({'lora_alpha': None}, 'lora_alpha: expected a finite number'),
    ({'use_rslora': 1}, 'use_rslora: expected true or false'),
    ({'target_modules': '(a.+)+b'}, 'adapts nothing; the model adapts'),
    ({'target_modules': '(.+)+!'}, 'took more than 3 seconds'),
    (
      {'target_modules': '('},
      r"target_modules: '\(' is not a regular expression",
    ),
    ({'target_modules': ['q_proj', 3]}, 'target_modules: expected a text'),
    ({'target_modules': {'q_proj': 1}}, 'target_modules: expected a list'),
    ({'target_modules': None}, 'adapts nothing'),
    (
      {'exclude_modules': ['q_proj']},
      "exclude_modules is .'q_proj'., which ad",
    ),
    ({'exclude_modules': r'.*layers\.0.*'}, 'adapts 1 of the 2 layers of'),
    ({'layers_to_transform': [0]}, 'adapts 1 of the 2 layers of layers/atten'),
    ({'layers_to_transform': 1}, 'adapts 1 of the 2 layers'),
    ({'layers_to_transform': 'x'}, 'layers_to_transform: expected a whole'),
    ({'layers_pattern': 'layers'}, 'layers_pattern without layers_to_trans'),
    ({'rank_pattern': {'q_proj': 2}}, 'r is 2 for model.layers.0.self_attn.q_'),
    ({'alpha_pattern': {r'.*\.v_proj': 2}}, 'lora_alpha is 2 for .*v_proj by'),
    ({'rank_pattern': {'q_proj': 'x'}}, "rank_pattern: 'q_proj': expected"),
    ({'modules_to_save': ['lm_head']}, "modules_to_save=.'lm_head'. are trai"),
    ({'modules_to_save': 'lm_head'}, 'modules_to_save: expected a list'),
    ({'trainable_token_indices': [1]}, 'rows of the embedding are trained'),
    ({'target_parameters': ['x']}, 'target_parameters=.* by their names'),
    ({'lora_bias': True}, 'lora_bias=True is not supported: its factors'),
    ({'alora_invocation_tokens': [1]}, 'begins behind certain tokens'),
    ({'megatron_config': {'a': 1}}, 'megatron_config=.* not supported'),
    ({'use_qalora': True}, 'use_qalora=True is not supported'),
    ({'init_lora_weights': 'loftq'}, 'took a part out of the base'),
    ({'init_lora_weights': 'corda'}, 'took a part out of the base'),
    ({'init_lora_weights': 'new'}, "init_lora_weights='new' is unknown here"),
    ({'init_lora_weights': 3}, 'init_lora_weights=3 is unknown here'),
    ({'new_field': 1}, 'new_field=1 is unknown here'),
  ],
)
def test_what_does_not_fit_is_refused(folder, tiny, settings, message):
  change(folder, **settings)
  with pytest.raises(ValueError, match=message) as error:
    import_adapter(folder, tiny)
  assert str(folder / CONFIG) in str(error.value)


@pytest.mark.parametrize(
  'settings',
  [
    {'exclude_modules': ['lm_head', 'embed_tokens']},
    {'exclude_modules': r'.*vision.*'},
    {'target_modules': 'all-linear'},
    {'target_modules': 'all-linear', 'exclude_modules': 'lm_head'},
    {'target_modules': r'.*\.(q|k|v|o|gate|up|down)_proj'},
    {'layers_to_transform': [0, 1]},
    {'layers_to_transform': [1, 0], 'layers_pattern': 'layers'},
    {'rank_pattern': {'.*_proj': 4}, 'r': 8},
    {'rank_pattern': {'elsewhere': 3}},
    {'bias': 'lora_only'},  # there are none
    {'bias': 'all'},
    {'init_lora_weights': 'eva', 'eva_config': {'rho': 2.0}},
    {'task_type': None},
    {'inference_mode': False, 'revision': 'main', 'peft_version': '0.21.0'},
    {'new_field': None, 'other_field': False, 'third': []},
    {'modules_to_save': None, 'use_dora': None, 'loftq_config': {}},
  ],
)
def test_what_means_the_same_is_read(folder, tiny, settings):
  before = import_adapter(folder, tiny)
  change(folder, **settings)
  after = import_adapter(folder, tiny)
  for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True):
    np.testing.assert_array_equal(x, y)


def test_biases_of_the_base_are_not_left_out(tmp_path):
  model = random_encoder(LoraConfig(rank=2), num_layers=1)
  model.export(tmp_path, model.init(jax.random.key(0)))
  for bias in ('lora_only', 'all'):
    change(tmp_path, bias=bias)
    with pytest.raises(ValueError, match=f"bias='{bias}' means that biases of"):
      import_adapter(tmp_path, model)


def test_another_base_is_said(folder, tiny, monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *a: said.append(text % a)
  )
  for base in ('random', 'someone/Random', '/data/models/random/', None):
    change(folder, base_model_name_or_path=base)
    import_adapter(folder, tiny)
  assert not said
  change(folder, base_model_name_or_path='meta-llama/Llama-2-7b-hf')
  import_adapter(folder, tiny)
  assert "trained on 'meta-llama/Llama-2-7b-hf', and is loaded onto" in said[0]


def renamed(folder, rename):
  tensors = load_file(folder / WEIGHTS)
  save_file({rename(k): v for k, v in tensors.items()}, folder / WEIGHTS)


@pytest.mark.parametrize(
  'rename',
  [
    lambda name: name.removeprefix('base_model.model.'),
    lambda name: name.replace('.weight', '.default.weight'),
    lambda name: name.removeprefix('base_model.model.').replace(
      '.weight', '.mine.weight'
    ),
  ],
)
def test_names_that_other_programs_give(folder, tiny, rename):
  before = import_adapter(folder, tiny)
  renamed(folder, rename)
  after = import_adapter(folder, tiny)
  for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True):
    np.testing.assert_array_equal(x, y)


def test_several_adapters_are_not_one(folder, tiny):
  parts = iter('ab' * 100)
  renamed(folder, lambda n: n.replace('.weight', f'.{next(parts)}.weight'))
  with pytest.raises(ValueError, match=r"several adapters: \['a', 'b'\]"):
    import_adapter(folder, tiny)


def test_adapters_in_folders_are_listed(folder, tiny):
  (folder / 'mine').mkdir()
  for name in (CONFIG, WEIGHTS):
    (folder / name).rename(folder / 'mine' / name)
  with pytest.raises(FileNotFoundError, match='holds the adapters mine: name'):
    import_adapter(folder, tiny)
  import_adapter(folder / 'mine', tiny)


def fields(config):
  """As PEFT writes them, with some that are seldom."""
  return config | {
    'exclude_modules': ['lm_head'],
    'rank_pattern': {'q_proj': 4},
    'alpha_pattern': {},
    'layers_to_transform': [0, 1],
    'layers_pattern': ['layers'],
    'modules_to_save': None,
    'init_lora_weights': True,
    'loftq_config': {},
    'runtime_config': {'ephemeral_gpu_offload': False},
    'trainable_token_indices': None,
  }


def attack(folder, tiny, count, start=0):
  config = fields(json.loads((folder / CONFIG).read_text()))
  whole = import_adapter(folder, tiny)
  accepted = 0
  for seed, rng in fuzzing.seeds(count, start):
    data = fuzzing.damaged_json(config, rng)
    (folder / CONFIG).write_bytes(data)
    try:
      found = fuzzing.outcome(lambda: import_adapter(folder, tiny), folder)
    except Exception as error:
      error.add_note(f'seed {seed}: {data[:2000]!r}')
      raise
    if not isinstance(found, Exception):
      accepted += 1
      for x, y in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
        np.testing.assert_array_equal(x, y)
  return accepted


def test_damaged_settings(folder, tiny):
  assert attack(folder, tiny, 100) > 5


@pytest.mark.long
def test_much_damage_to_settings(folder, tiny):
  attack(folder, tiny, 10_000, start=1000)


def test_reading_gives_what_the_file_says(folder):
  change(folder, lora_alpha=3.5, rank_pattern={'q': 2}, layers_to_transform=3)
  found = read_adapter_config(folder / CONFIG)
  assert dataclasses.asdict(found) | {'path': None, 'targets': None} == {
    'path': None,
    'rank': 4,
    'alpha': 3.5,
    'rank_pattern': {'q': 2},
    'alpha_pattern': {},
    'rslora': False,
    'dora': False,
    'targets': None,
    'exclude': [],
    'layers': [3],
    'layers_pattern': [],
    'saved': [],
    'bias': 'none',
    'fan_in_fan_out': False,
    'ties': False,
    'task_type': 'CAUSAL_LM',
    'base': 'random',
  }


def test_fan_in_fan_out_is_said_of_the_base(tmp_path):
  """PEFT writes it also where none of GPT-2's own maps has an adapter."""
  published = pathlib.Path(__file__).parents[3] / 'configs/published/gpt2'
  lora = LoraConfig('embedding', rank=4, alpha=8)
  model = from_folder(published, lora=lora, weights=False)
  saved = {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8, 'fan_in_fan_out': True}
  file = tmp_path / CONFIG
  file.write_text(json.dumps(saved | {'target_modules': ['wte']}))
  check_adapter(read_adapter_config(file), model)
  file.write_text(json.dumps(saved | {'target_modules': ['wte', 'c_attn']}))
  with pytest.raises(ValueError, match='target_modules is .* LoRA target'):
    check_adapter(read_adapter_config(file), model)
