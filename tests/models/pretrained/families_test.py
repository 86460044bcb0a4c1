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
PHI3 = CASES['phi3'].settings | {'model_type': 'phi3', 'rms_norm_eps': 1e-6}
SMOLLM3 = CASES['smollm3'].settings | {
  'model_type': 'smollm3',
  'rms_norm_eps': 1e-6,
}
YARN = SMOLLM3['rope_parameters']
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
    (SMOLLM3 | {'no_rope_layers': [1]}, 'no_rope_layers: expected a list of 2'),
    (SMOLLM3 | {'no_rope_layers': [1, 2]}, 'no_rope_layers: .* from 0 to 1'),
    (
      SMOLLM3
      | {'sliding_window': None, 'layer_types': ['sliding_attention'] * 2},
      'window=0 must be at least 1',
    ),
    (SMOLLM3 | {'rope_parameters': YARN | {'beta': 1}}, 'unknown: beta$'),
    (SMOLLM3 | {'rope_parameters': YARN | {'rope_theta': 1.0}}, 'yarn needs a'),
    (PHI3 | {'attention_bias': True}, 'attention_bias=True is not supported'),
    (
      PHI3 | {'rope_parameters': {'rope_type': 'linear', 'factor': 2.0}},
      "rope_type='linear' is not supported; supported: 'default', 'longrope'",
    ),
    (
      PHI3 | {'rope_parameters': None, 'partial_rotary_factor': 0.5},
      'rotary_dim=5 must be even',
    ),
    (
      PHI3
      | {'rope_parameters': {**PHI3['rope_parameters'], 'long_factor': [1]}},
      'long_rope_divisors has 1 entries, must have rotary_dim / 2 = 3',
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


def test_the_first_files_of_phi3_name_longrope_otherwise(tmp_path):
  rope = PHI3['rope_parameters']
  share = rope['partial_rotary_factor']
  old = PHI3 | {
    'rope_parameters': None,
    'rope_theta': rope['rope_theta'],
    'partial_rotary_factor': share,
    'rope_scaling': {
      'type': 'su',
      'short_factor': rope['short_factor'],
      'long_factor': rope['long_factor'],
    },
  }
  config = config_of(tmp_path, old)
  assert config == config_of(tmp_path, PHI3)
  assert (config.rotary_dim, config.rope_context) == (6, 9)


@pytest.mark.parametrize(
  ('changes', 'gain'),
  [
    ({}, 1 + 0.1 * np.log(8)),
    ({'attention_factor': 1.5}, 1.5),
    ({'mscale': 2.0, 'mscale_all_dim': 1.0}, None),
    ({'mscale': 2.0}, 1 + 0.1 * np.log(8)),  # which alone says nothing
  ],
)
def test_yarn_multiplies_what_it_rotates(tmp_path, changes, gain):
  config = config_of(tmp_path, SMOLLM3 | {'rope_parameters': YARN | changes})
  if gain is None:
    gain = (1 + 0.2 * np.log(8)) / (1 + 0.1 * np.log(8))
  np.testing.assert_allclose(config.rope_gain, gain)
  # The first pair turns fast and is kept, the last is divided by the factor.
  np.testing.assert_allclose(config.rope_divisors[0], 1.0)
  np.testing.assert_allclose(config.rope_divisors[-1], 8.0)


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
