"""Which modules are adapted, against peft; collected where torch is there."""

import dataclasses
import json

import peft
import pytest
import torch
import transformers

from lora_opt.models.pretrained.adapter_config import (
  REFUSED,
  USED,
  WITHOUT_EFFECT,
  read_adapter_config,
)
from lora_opt.models.pretrained.adapter_targets import Module, adapted_modules

pytestmark = pytest.mark.filterwarnings('ignore')  # of peft and transformers


def test_every_field_of_peft_is_known():
  fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
  assert fields <= USED | WITHOUT_EFFECT | REFUSED.keys()
  assert not USED & WITHOUT_EFFECT
  assert not (USED | WITHOUT_EFFECT) & REFUSED.keys()


SIZES = {'num_hidden_layers': 3, 'vocab_size': 32}
KINDS = {
  'llama': transformers.LlamaConfig(
    hidden_size=16,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=2,
    **SIZES,
  ),
  'gpt2': transformers.GPT2Config(
    n_embd=16, n_layer=3, n_head=2, n_positions=8, vocab_size=32
  ),
}


def adapted_by_peft(kind, settings):
  """Name: (rank, alpha) of everything that peft adapts."""
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(KINDS[kind])
  names = [name for name, _ in model.named_modules() if name]
  linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
  modules = [
    Module(name, isinstance(module, linear) and name != 'lm_head')
    for name, module in model.named_modules()
    if name in names and isinstance(module, (*linear, torch.nn.Embedding))
  ]
  config = peft.LoraConfig(task_type='CAUSAL_LM', **settings)
  adapted = peft.get_peft_model(model, config)
  found = {}
  for name, module in adapted.named_modules():
    if isinstance(module, peft.tuners.lora.LoraLayer):
      plain = name.removeprefix('base_model.model.')
      found[plain] = module.r['default'], module.lora_alpha['default']
  return modules, found


@pytest.mark.parametrize(
  ('kind', 'settings'),
  [
    ('llama', {'target_modules': ['q_proj', 'v_proj']}),
    ('llama', {'target_modules': 'all-linear'}),
    ('llama', {'target_modules': 'ALL-linear', 'exclude_modules': ['o_proj']}),
    ('llama', {'target_modules': r'.*\.(q|up)_proj'}),
    ('llama', {'target_modules': r'model\.layers\.[01]\..*q_proj'}),
    ('llama', {'target_modules': ['q_proj', 'embed_tokens', 'lm_head']}),
    (
      'llama',
      {'target_modules': ['model.layers.1.self_attn.q_proj', 'v_proj']},
    ),
    (
      'llama',
      {'target_modules': ['q_proj', 'v_proj'], 'exclude_modules': ['v_proj']},
    ),
    (
      'llama',
      {
        'target_modules': ['q_proj', 'v_proj'],
        'exclude_modules': r'.*layers\.1\..*',
      },
    ),
    (
      'llama',
      {
        'target_modules': ['q_proj', 'model.layers.0.mlp.up_proj'],
        'layers_to_transform': [1, 2],
      },
    ),
    (
      'llama',
      {
        'target_modules': ['q_proj'],
        'layers_to_transform': 1,
        'layers_pattern': 'layers',
      },
    ),
    (
      'llama',
      {
        'target_modules': ['q_proj', 'o_proj'],
        'layers_to_transform': [0, 2],
        'layers_pattern': ['blocks', 'lay.rs'],
      },
    ),
    (
      'llama',
      {
        'target_modules': ['q_proj', 'v_proj', 'up_proj'],
        'rank_pattern': {'q_proj': 2, r'.*\.1\..*': 3, '(up|v)_proj': 5},
        'alpha_pattern': {'layers.0.self_attn.q_proj': 9, 'v': 4},
      },
    ),
    (
      'llama',
      {'target_modules': 'all-linear', 'modules_to_save': ['mlp.up_proj']},
    ),
    (
      'llama',
      {'target_modules': ['q_proj', 'lm_head'], 'modules_to_save': ['lm_head']},
    ),
    ('gpt2', {'target_modules': ['c_attn']}),
    ('gpt2', {'target_modules': ['attn.c_proj']}),
    ('gpt2', {'target_modules': 'all-linear', 'exclude_modules': 'c_proj'}),
    ('gpt2', {'target_modules': ['c_fc', 'wte'], 'layers_to_transform': [1]}),
  ],
)
def test_the_modules_of_peft(tmp_path, kind, settings):
  modules, expected = adapted_by_peft(kind, settings)
  saved = settings | {'peft_type': 'LORA', 'r': 8, 'lora_alpha': 8}
  (tmp_path / 'adapter_config.json').write_text(json.dumps(saved))
  config = read_adapter_config(tmp_path / 'adapter_config.json')
  found = adapted_modules(config, modules)
  assert {n: (a.rank, a.alpha) for n, a in found.items()} == expected


def test_what_peft_saves_is_read(tmp_path):
  model = transformers.AutoModelForCausalLM.from_config(KINDS['llama'])
  config = peft.LoraConfig(
    task_type='CAUSAL_LM',
    target_modules=['q_proj', 'v_proj'],
    exclude_modules=['v_proj'],
    init_lora_weights='orthogonal',
  )
  peft.get_peft_model(model, config).save_pretrained(tmp_path)
  found = read_adapter_config(tmp_path / 'adapter_config.json')
  assert sorted(found.targets) == ['q_proj', 'v_proj']
  assert found.exclude == ['v_proj']
