"""What the families do beyond Llama: old files refused or understood."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.models.pretrained.huggingface import from_folder, read_config
from tests.models.batches import paths
from tests.models.parity import material
from tests.models.parity.decoder import CASES

GPT2 = CASES['gpt2'].settings | {'model_type': 'gpt2'}
GEMMA3 = CASES['gemma3'].settings | {'model_type': 'gemma3_text'}
GEMMA = CASES['gemma'].settings | {'model_type': 'gemma', 'rms_norm_eps': 1e-6}
MISTRAL = GEMMA | {'model_type': 'mistral', 'sliding_window': None}
GEMMA3 |= {'rms_norm_eps': 1e-6}


def config_of(folder, settings):
  (folder / 'config.json').write_text(json.dumps(settings))
  return read_config(folder / 'config.json')[1]


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (GPT2 | {'scale_attn_by_inverse_layer_idx': True}, 'layer_idx=True is not'),
    (GPT2 | {'add_cross_attention': True}, 'add_cross_attention=True is not'),
    (GPT2 | {'activation_function': 'tanh'}, "activation_function='tanh' is"),
    (GPT2 | {'rope_theta': 1.0}, 'unknown here.*: rope_theta=1.0'),
    (GEMMA | {'hidden_activation': 'silu'}, "hidden_activation='silu' is not"),
    (GEMMA | {'use_bidirectional_attention': True}, 'attention=True is not'),
    (GEMMA3 | {'final_logit_softcapping': -1.0}, 'softcapping: expected a fin'),
    (GEMMA3 | {'layer_types': ['linear_attention'] * 3}, "types='linear_att"),
    (GEMMA3 | {'layer_types': ['full_attention']}, 'layer_types has 1 ent'),
    (
      GEMMA | {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 1.0}},
      "scaling 'linear' has the parameters factor; missing: factor, unkn",
    ),
    (
      GEMMA | {'rope_parameters': {'partial_rotary_factor': 0.5}},
      "'default' has the parameters none; .* unknown: partial_rotary_factor",
    ),
  ],
)
def test_what_would_compute_something_else_is_refused(
  tmp_path, settings, message
):
  with pytest.raises(ValueError, match=message):
    config_of(tmp_path, settings)


def test_mistral_has_a_window_unless_the_file_says_null(tmp_path):
  assert config_of(tmp_path, MISTRAL).window == 0
  absent = {k: v for k, v in MISTRAL.items() if k != 'sliding_window'}
  assert config_of(tmp_path, absent).window == 4096


def test_the_first_files_of_gemma_mean_the_approximate_gelu(tmp_path):
  old = config_of(tmp_path, GEMMA | {'hidden_act': 'gelu'})
  assert old == config_of(tmp_path, GEMMA)


def test_old_and_new_spellings_of_gemma3_agree(tmp_path):
  old = GEMMA3 | {
    'rope_theta': 1e4,
    'rope_local_base_freq': 50.0,
    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    'sliding_window_pattern': 2,
  }
  del old['rope_parameters'], old['layer_types']
  assert config_of(tmp_path, old) == config_of(tmp_path, GEMMA3)


def test_mistral_without_a_window(tmp_path):
  assert config_of(tmp_path, MISTRAL).windowed_layers == ()


def test_gpt2_as_it_was_published(tmp_path):
  """Without prefix, with the causal masks and a copy of the tied head."""
  _, config = material.read_golden('decoder_gpt2')
  material.write_folder(tmp_path, config)
  expected = from_folder(tmp_path)
  tensors = load_file(tmp_path / 'model.safetensors')
  save_file(
    {name.removeprefix('transformer.'): t for name, t in tensors.items()}
    | {
      f'h.{i}.attn.bias': np.tri(32, dtype=np.float32)[None, None]
      for i in range(2)
    }
    | {f'h.{i}.attn.masked_bias': np.array(-1e4, np.float32) for i in range(2)}
    | {'lm_head.weight': tensors['transformer.wte.weight'].copy()},
    tmp_path / 'model.safetensors',
  )
  for (path, ours), (_, theirs) in zip(
    paths(from_folder(tmp_path).base), paths(expected.base), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs, err_msg=path)
