"""Merged folders give the logits of the model with its adapter."""

import dataclasses
import json
import os
import types

import jax
import numpy as np
import pytest

from lora_opt.evaluation import run
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.pretrained.merge import merge_adapter
from lora_opt.models.random_model import random_model
from lora_opt.models.start import pissa
from tests.models.batches import random_adapter, row_batch
from tests.models.parity import decoder, material

pytestmark = pytest.mark.usefixtures('fast_compile')

BATCH = row_batch([5, 6, 7, 8, 9], [20, 21, 22])


def logits(model, lora=None):
  return np.asarray(jax.jit(model.logits)(model.base, lora, BATCH))


@pytest.mark.parametrize(
  ('settings', 'target'),
  [
    ({}, '.*layers/.*|embedding'),  # tied, so the embedding is untied
    ({'dora': True}, '.*/(q|down)'),
    ({'start': pissa, 'rslora': True}, '.*/(q|down)'),
  ],
  ids=['tied-embedding', 'dora', 'pissa'],
)
def test_round_trip(tmp_path, settings, target):
  model = random_model(LoraConfig(target, rank=2, **settings), num_layers=2)
  start = model.init(jax.random.key(0))
  lora = jax.tree.map(lambda x, d: x + d, start, random_adapter(model))
  model.merge(tmp_path / 'merged', lora)
  merged = from_folder(tmp_path / 'merged')
  expected = logits(model, lora)
  np.testing.assert_allclose(logits(merged), expected, atol=1e-4)
  assert abs(expected - logits(model)).max() > 0.02
  assert merged.config.tie_embeddings == ('embedding' not in target)
  text = 'Hello <eos> é'
  assert merged.tokenizer.encode(text) == model.tokenizer.encode(text)
  assert merged.tokenizer.chat_template == model.tokenizer.chat_template
  # Without them transformers would write on and on.
  settings = read(tmp_path / 'merged/config.json')
  assert (settings['bos_token_id'], settings['eos_token_id']) == (256, 257)
  generation = read(tmp_path / 'merged/generation_config.json')
  assert generation['eos_token_id'] == [257]
  assert generation['pad_token_id'] == 258


def read(file):
  return json.loads(file.read_text())


def test_quantized_base_is_merged_as_it_computed(tmp_path):
  model = random_model(LoraConfig('.*/q', rank=2), quantize='nf4')
  lora = random_adapter(model)
  model.merge(tmp_path / 'merged', lora)
  merged = from_folder(tmp_path / 'merged')
  np.testing.assert_allclose(logits(merged), logits(model, lora), atol=1e-4)


@pytest.mark.parametrize('case', ['gpt2', 'gemma3'])
def test_other_families_copy_their_settings(tmp_path, case):
  _, config = material.read_golden(f'decoder_{case}')
  source = tmp_path / 'source'
  source.mkdir()
  model = decoder.our_model(decoder.CASES[case], source, config)
  (source / 'chat_template.jinja').write_text('{{ messages }}')
  lora = material.adapter(model)
  model.merge(tmp_path / 'merged', lora, source=source)
  merged = from_folder(tmp_path / 'merged')
  # GPT-2's case has an adapter on its tied head.
  tied = {'tie_embeddings': case != 'gpt2'}
  assert merged.config == dataclasses.replace(model.config, **tied)
  assert merged.tokenizer.chat_template == '{{ messages }}'
  np.testing.assert_allclose(logits(merged), logits(model, lora), atol=1e-4)


def test_files_are_split_and_indexed(tmp_path, tiny):
  merge_adapter(
    tmp_path / 'm', None, tiny, dtype='bfloat16', shard_bytes=20_000
  )
  files = sorted(p.name for p in (tmp_path / 'm').glob('*.safetensors'))
  assert files[0] == f'model-00001-of-{len(files):05}.safetensors'
  assert len(files) > 2
  index = json.loads((tmp_path / 'm/model.safetensors.index.json').read_text())
  assert {*index['weight_map'].values()} == {*files}
  settings = json.loads((tmp_path / 'm/config.json').read_text())
  assert settings['torch_dtype'] == 'bfloat16'
  merged = from_folder(tmp_path / 'm')
  for ours, theirs in zip(
    *map(jax.tree.leaves, (merged.base, tiny.base)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=2**-8)


def test_run_mode(tmp_path, tiny, capsys):
  lora = random_adapter(tiny)
  tiny.export(tmp_path / 'adapter', lora)
  merged = from_folder(run.merge(tmp_path, tiny))
  assert 'merged model' in capsys.readouterr().out
  np.testing.assert_allclose(logits(merged), logits(tiny, lora), atol=1e-4)
  with pytest.raises(FileExistsError, match='merge into a new folder'):
    run.merge(tmp_path, tiny)


def test_a_tokenizer_that_cannot_be_written_is_named(tmp_path, tiny):
  rows = tiny.tokenizer.vocab_size
  other = types.SimpleNamespace(vocab_size=rows)
  model = dataclasses.replace(tiny, tokenizer=other)
  with pytest.raises(ValueError, match='only copied: give source'):
    model.merge(tmp_path / 'merged', None)
  assert not (tmp_path / 'merged').exists()


def test_scaled_positions_need_the_folder(tmp_path, tiny):
  config = dataclasses.replace(tiny.config, rope_divisors=(1, 2, 3, 4))
  model = dataclasses.replace(tiny, config=config)
  with pytest.raises(ValueError, match='have no config.json; give the folder'):
    model.merge(tmp_path / 'merged', None)


def test_what_is_not_finite_is_not_written(tmp_path, tiny):
  lora = random_adapter(tiny)
  lora['layers']['mlp']['up']['lora_a'] *= 1e30
  lora['layers']['mlp']['up']['lora_b'] *= 1e30
  with pytest.raises(ValueError, match=r'mlp\.up_proj\.weight would be writ'):
    tiny.merge(tmp_path / 'merged', lora)
  assert not (tmp_path / 'merged').exists()


def test_only_files_are_copied(tmp_path, tiny):
  tiny.merge(tmp_path / 'source', None)
  os.mkfifo(tmp_path / 'source/pipe.json')
  (tmp_path / 'source/folder.json').mkdir()
  tiny.merge(tmp_path / 'merged', None, source=tmp_path / 'source')
  names = {path.name for path in (tmp_path / 'merged').iterdir()}
  assert 'tokenizer.json' in names and not names & {'pipe.json', 'folder.json'}
