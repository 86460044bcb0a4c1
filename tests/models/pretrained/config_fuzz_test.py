"""Damaged config.json files of every family: refused clearly, or read right.

What is accepted must build the model of its shapes, and say what transformers
makes of the same settings where that is installed.
"""

import importlib.util
import json
import math
import pathlib

import jax
import pytest

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.config_file import HARMLESS
from lora_opt.models.pretrained.huggingface import from_folder, read_config
from tests import fuzzing
from tests.models.pretrained.encoder_configs import PUBLISHED

TORCH = importlib.util.find_spec('transformers') is not None
PUBLISHED_FOLDERS = pathlib.Path(__file__).parents[3] / 'configs/published'
# A published config of each kind.
FOLDERS = {
  'gemma': 'gemma_2b',
  'gemma2': 'gemma2_2b',
  'gemma3_text': 'gemma3_1b',
  'gpt2': 'gpt2',
  'llama': 'llama3_1_8b',
  'mistral': 'mistral_7b',
  'mt5': 'mt5_small',
  'olmo2': 'olmo2_1b',
  'phi3': 'phi4_mini',
  'qwen2': 'qwen2_5_0_5b',
  'qwen3': 'qwen3_0_6b',
  'smollm3': 'smollm3_3b',
  't5': 't5_small',
}
ENCODERS = {
  'bert': 'bert-base-uncased',
  'roberta': 'roberta-base',
  'deberta-v2': 'deberta-v3-base',
}
KINDS = [*FOLDERS, *ENCODERS]
# Few layers, so that building is quick.
LAYERS = ('num_hidden_layers', 'n_layer', 'num_layers', 'num_decoder_layers')


def settings_of(kind):
  if kind in ENCODERS:
    settings = dict(PUBLISHED[ENCODERS[kind]][0])
  else:
    file = PUBLISHED_FOLDERS / FOLDERS[kind] / 'config.json'
    settings = json.loads(file.read_text())
  settings |= {name: 2 for name in LAYERS if name in settings}
  if 'layer_types' in settings:
    settings['layer_types'] = ['sliding_attention', 'full_attention']
  if 'no_rope_layers' in settings:
    settings['layer_types'] = ['full_attention'] * 2
    settings['no_rope_layers'] = [1, 0]
  return settings


# Our field: where transformers keeps the same number.
THEIRS = {
  'vocab_size': ('vocab_size',),
  'embed_dim': ('hidden_size',),
  'num_layers': ('num_hidden_layers',),
  'num_decoder_layers': ('num_decoder_layers',),
  'num_heads': ('num_attention_heads',),
  'num_kv_heads': ('num_key_value_heads',),
  'head_dim': ('head_dim', 'd_kv'),
  'mlp_dim': ('intermediate_size', 'd_ff', 'n_inner'),
  'norm_eps': ('rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon'),
  'attention_bias': ('attention_bias',),
  'mlp_bias': ('mlp_bias',),
  'num_buckets': ('relative_attention_num_buckets',),
  'max_distance': ('relative_attention_max_distance',),
}
# Whole numbers there are none to transformers.
FLOATS = (*THEIRS['norm_eps'],)
FLOATS += ('attn_logit_softcapping', 'final_logit_softcapping')


# Where null is not the same as nothing: as many as there are heads.
NULLS = ('num_key_value_heads',)
_HEADS = 'is not a multiple of the number of attention heads'


def compare(config, settings, harmless):
  """Asserts that transformers reads these settings alike."""
  import transformers
  from huggingface_hub.errors import StrictDataclassError

  kind = type(transformers.AutoConfig.for_model(settings['model_type']))
  # It looks also at what does not matter here, and refuses whole numbers where
  # it has floats, which old files hold.
  settings = {
    key: float(value) if key in FLOATS else value
    for key, value in settings.items()
    if key not in harmless and (value is not None or key in NULLS)
  }
  try:
    theirs = kind.from_dict(settings)
  except StrictDataclassError as error:
    # Of heads whose size is given, any number may do; and where it has no null
    # for the heads of keys, older versions have, with the meaning that we know.
    known = settings.get('head_dim') and _HEADS in str(error)
    null = settings.get('num_key_value_heads', 0) is None
    null = null and 'num_key_value_heads' in str(error)
    # A number that scores are divided by the root of: we take any, as it did.
    scale = "Field 'query_pre_attn_scalar' expected int" in str(error)
    assert known or null or scale, error
    return
  for ours, names in THEIRS.items():
    for name in names:
      there = getattr(theirs, name, None)
      if there is not None and hasattr(config, ours):
        assert getattr(config, ours) == there, (ours, name)
  rope = getattr(theirs, 'rope_parameters', None)
  if rope and hasattr(config, 'rope_theta'):
    local = rope.get('sliding_attention', {})
    rope = rope.get('full_attention', rope)
    assert config.rope_theta == rope['rope_theta']
    assert config.local_rope_theta in (None, local.get('rope_theta'))
    scaled = config.rope_divisors or config.dynamic_rope
    assert bool(scaled) == (rope['rope_type'] != 'default')
  if hasattr(config, 'window') and config.window:
    assert config.window == theirs.sliding_window
    kinds = getattr(theirs, 'layer_types', None)
    assert not kinds or config.windowed_layers == tuple(
      one == 'sliding_attention' for one in kinds
    )
  if hasattr(config, 'tie_embeddings') and kind.model_type not in ('t5', 'mt5'):
    assert config.tie_embeddings == theirs.tie_word_embeddings


def attempt(folder, data):
  """Reads such a config.json, and builds its model if it is accepted."""
  file = folder / 'config.json'
  file.write_bytes(data)
  found = fuzzing.outcome(lambda: read_config(file), folder)
  if isinstance(found, Exception):
    return False
  family, config = found
  shapes = jax.tree.leaves(family.abstract_base(config))
  assert sum(math.prod(leaf.shape) for leaf in shapes) > 0
  if TORCH:
    compare(config, json.loads(data), {*HARMLESS, *family.harmless})
  return True


def attack(folder, kind, count, start=0):
  settings, accepted = settings_of(kind), 0
  for seed, rng in fuzzing.seeds(count, start):
    data = fuzzing.damaged_json(settings, rng)
    try:
      accepted += attempt(folder, data)
    except Exception as error:
      error.add_note(f'{kind}, seed {seed}: {data[:2000]!r}')
      raise
  return accepted


@pytest.mark.filterwarnings('ignore')  # of transformers
@pytest.mark.parametrize('kind', KINDS)
def test_damaged_settings(tmp_path, kind):
  assert attempt(tmp_path, json.dumps(settings_of(kind)).encode())
  attack(tmp_path, kind, 24)  # of so few, all may be refused


@pytest.mark.long
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', KINDS)
def test_much_damage_to_settings(tmp_path, kind):
  attack(tmp_path, kind, 2000, start=1000)


@pytest.mark.parametrize(
  ('kind', 'changes', 'message'),
  [
    ('llama', {'rms_norm_eps': -1.0}, 'rms_norm_eps: expected a finite number'),
    ('llama', {'rope_theta': 0}, 'rope_theta: expected a finite number'),
    ('llama', {'tie_word_embeddings': 'false'}, 'tie_word_embeddings: expect'),
    ('bert', {'max_position_embeddings': 2**31}, 'from 1 to 1073741824, found'),
    ('llama', {'num_attention_heads': 0}, 'num_attention_heads: expected a w'),
    ('llama', {'num_hidden_layers': 10**9}, 'from 1 to 10000, found 1000000'),
    ('llama', {'hidden_size': 4096.0}, 'hidden_size: expected .*4096.0'),
    ('llama', {'hidden_size': '4096'}, "hidden_size: expected .*'4096'"),
    ('llama', {'hidden_size': None}, 'hidden_size: expected .*None'),
    ('llama', {'hidden_size': 4095}, 'hidden_size=4095 must be a multiple of'),
    ('llama', {'hidden_size': 2**31}, 'head_dim: expected .* to 16384'),
    ('llama', {'vocab_size': -3}, 'vocab_size: expected .*-3'),
    ('llama', {'num_key_value_heads': 5}, 'must be a multiple of num_kv_heads'),
    ('llama', {'hidden_act': ['silu']}, 'hidden_act=.* is not supported'),
    ('llama', {'model_type': {}}, 'model_type={} is not supported'),
    ('llama', {'rope_scaling': 'linear'}, 'rope_scaling: expected an object'),
    ('llama', {'rope_scaling': {'type': 3}}, 'type=3 is not supported'),
    (
      'llama',
      {'rope_scaling': {'type': 'linear', 'factor': 0}},
      'rope_scaling: factor: expected a finite number above 0, found 0',
    ),
    (
      'llama',
      {'rope_scaling': {'type': 'linear', 'factor': -2.0}},
      'rope_scaling: factor: expected a finite number above 0',
    ),
    ('llama', {'rope_scaling': {'type': 'linear'}}, 'missing: factor'),
    (
      'llama',
      {'rope_parameters': {'rope_theta': 5.0}, 'rope_scaling': None},
      'outside, but rope_theta=5.0 in .*rope_parameters',
    ),
    ('mistral', {'sliding_window': 0}, 'sliding_window: expected .*found 0'),
    ('gemma3_text', {'sliding_window': None}, 'sliding_window: expected'),
    ('gemma3_text', {'layer_types': 3}, 'layer_types: expected a list'),
    ('gemma3_text', {'layer_types': [3, 3]}, 'layer_types=3 is not supported'),
    ('gemma3_text', {'layer_types': ['full_attention']}, 'one for each of 2'),
    ('gpt2', {'n_head': 7}, 'n_embd=768 must be a multiple of n_head=7'),
    ('roberta', {'pad_token_id': -1}, 'pad_token_id: expected'),
    ('roberta', {'pad_token_id': 600}, 'max_length: expected'),
    ('deberta-v2', {'pos_att_type': [['c2p']]}, "pos_att_type=.*'c2p'"),
    ('deberta-v2', {'share_att_key': 1}, 'share_att_key: expected true or f'),
    ('t5', {'decoder_start_token_id': -1}, 'decoder_start_token_id: expected'),
    ('t5', {'decoder_start_token_id': 10**6}, 'must be below vocab_size'),
    ('t5', {'relative_attention_num_buckets': 3}, 'num_buckets'),
  ],
)
def test_one_wrong_setting(tmp_path, kind, changes, message):
  file = tmp_path / 'config.json'
  settings = settings_of(kind)
  if kind == 'llama' and 'rope_scaling' not in changes:
    settings.pop('rope_scaling')
  file.write_text(json.dumps(settings | changes))
  with pytest.raises(ValueError, match=message) as error:
    read_config(file)
  assert str(file) in str(error.value)


def test_a_key_that_occurs_twice(tmp_path):
  text = json.dumps(settings_of('llama'))
  (tmp_path / 'config.json').write_text('{"hidden_size": 8, ' + text[1:])
  with pytest.raises(ValueError, match="'hidden_size' occurs twice"):
    read_config(tmp_path / 'config.json')


def test_a_model_of_shapes_reads_the_same_file(tmp_path):
  settings = settings_of('llama') | {'num_hidden_layers': 10**9}
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  with pytest.raises(ValueError, match='num_hidden_layers'):
    from_folder(tmp_path, lora=LoraConfig(), weights=False)


@pytest.mark.parametrize('kind', ['mistral', 'gemma', 'gemma3_text', 'llama'])
def test_what_is_left_out_is_the_default_of_its_class(tmp_path, kind):
  settings = settings_of(kind) | {'num_attention_heads': 16}
  for key in ('num_key_value_heads', 'max_position_embeddings', 'head_dim'):
    settings.pop(key, None)
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(settings))
  _, config = read_config(file)
  assert (config.num_kv_heads, config.max_length) == {
    'mistral': (8, 131_072),
    'gemma': (16, 8192),
    'gemma3_text': (4, 131_072),
    'llama': (16, 2048),
  }[kind]
