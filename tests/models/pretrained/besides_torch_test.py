"""Heads that config.json ties: what transformers computes; torch is needed."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.random_model import random_model
from tests.models.batches import jitted, pair_batch, row_batch
from tests.models.parity import material
from tests.models.pretrained.besides_test import T5
from tests.models.pretrained.checkpoint_files import write_folder

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  pytest.mark.filterwarnings('ignore'),  # of transformers
]
IDS = np.random.default_rng(0).integers(0, 256, (2, 9))


@pytest.mark.parametrize('factor', [1.0, 1.5], ids=['equal', 'other'])
def test_llama(tmp_path, factor):
  source = tmp_path / 'source'
  source.mkdir()
  write_folder(source, random_model(num_layers=1))
  add_head(source, 'model.embed_tokens.weight', factor)
  from_folder(source).merge(tmp_path / 'merged', None, source=source)
  for folder in (source, tmp_path / 'merged'):
    model = from_folder(folder)
    assert model.config.tie_embeddings == (factor == 1.0)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
      expected = theirs(torch.tensor(IDS)).logits.numpy()
    actual = jitted(model, 'logits')(model.base, None, row_batch(*IDS))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize('factor', [1.0, 1.5], ids=['equal', 'other'])
def test_t5(tmp_path, factor):
  source = tmp_path / 'source'
  source.mkdir()
  material.write_folder(source, json.dumps(T5))
  add_head(source, 'shared.weight', factor)
  from_folder(source).merge(tmp_path / 'merged', None, source=source)
  for folder in (source, tmp_path / 'merged'):
    model = from_folder(folder)
    kind = transformers.T5ForConditionalGeneration
    theirs = kind.from_pretrained(folder).eval()
    with torch.no_grad():
      expected = theirs(
        input_ids=torch.tensor(IDS[:1]), labels=torch.tensor(IDS[1:])
      ).logits.numpy()
    batch = pair_batch(258, (IDS[0], IDS[1]))
    actual = jitted(model, 'logits')(model.base, None, batch)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def add_head(folder, table, factor):
  file = folder / 'model.safetensors'
  tensors = load_file(file)
  tensors['lm_head.weight'] = tensors[table] * np.float32(factor)
  save_file(tensors, file, metadata={'format': 'pt'})
