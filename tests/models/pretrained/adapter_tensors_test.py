"""Tensors of an adapter: all of them fit, none is left out by its name."""

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.peft import import_adapter
from lora_opt.models.random_model import random_model
from tests import fuzzing
from tests.models.batches import hugging_face_tensors, random_adapter

WEIGHTS = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'


def exported(folder, target, **settings):
  """A model whose adapter is in the folder, and that adapter's tensors."""
  model = random_model(LoraConfig(target, rank=2), num_layers=1, **settings)
  model.export(folder, random_adapter(model))
  return model, load_file(folder / WEIGHTS)


@pytest.mark.parametrize(
  ('tied', 'name'),
  [
    (True, 'model.embed_tokens'),
    (True, 'lm_head'),
    (False, 'model.embed_tokens'),
    (False, 'lm_head'),
  ],
)
@pytest.mark.parametrize('inner', ['.base_layer.weight', '.weight'])
def test_a_table_of_the_base_is_compared(tmp_path, tied, name, inner):
  target = 'head' if name == 'lm_head' else 'embedding'
  model, tensors = exported(tmp_path, target, tie_embeddings=tied)
  base = hugging_face_tensors(model)
  table = base.get(f'{name}.weight', base['model.embed_tokens.weight'])
  key = f'{PREFIX}{name}{inner}'
  for kind in (np.float32, ml_dtypes.bfloat16):
    save_file(tensors | {key: table.astype(kind)}, tmp_path / WEIGHTS)
    import_adapter(tmp_path, model)
  other = table.copy()
  other[-1, -1] += 1
  for wrong in (other, table[:-1], table * np.nan, table.astype(np.int32)):
    save_file(tensors | {key: wrong.copy()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=rf'{WEIGHTS}: tensor {key} is '):
      import_adapter(tmp_path, model)


def test_a_weight_of_no_base_is_refused(tmp_path):
  model, tensors = exported(tmp_path, '.*/q')
  key = f'{PREFIX}model.other.base_layer.weight'
  save_file(tensors | {key: np.zeros(2, np.float32)}, tmp_path / WEIGHTS)
  with pytest.raises(ValueError, match='which the model does not have'):
    import_adapter(tmp_path, model)


A = f'{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: t.pop(A), rf'lacks tensor\(s\) {A}'),
    (lambda t: t.update({A: t[A].T.copy()}), r'shape \(32, 2\), .* \(2, 32\)'),
    (lambda t: t.update({A: t[A][:, :8].copy()}), r'shape \(2, 8\), .*\(2, 32'),
    (lambda t: t.update({A: t[A] * np.nan}), 'has 64 values that are not fin'),
    (lambda t: t.update({A: t[A] * np.inf}), 'the first is -?inf'),
    (lambda t: t.update({A: t[A].astype(np.float64) * 1e60}), 'float32 cannot'),
    (lambda t: t.update({A: t[A].astype(np.int8)}), 'is of type int8, weights'),
    (lambda t: t.update({'x.lora_A.weight': t[A]}), r'has unknown tensor'),
  ],
  ids=range(8),
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
  model, tensors = exported(tmp_path, '.*/q')
  change(tensors)
  save_file(tensors, tmp_path / WEIGHTS)
  with pytest.raises(ValueError, match=message):
    import_adapter(tmp_path, model)


def test_damaged_files(tmp_path):
  model, _ = exported(tmp_path, '.*/q')
  file = tmp_path / WEIGHTS
  whole, expected = file.read_bytes(), import_adapter(tmp_path, model)
  start = 8 + int.from_bytes(whole[:8], 'little')
  for _, rng in fuzzing.seeds(30):
    file.write_bytes(fuzzing.damaged(whole[:start], rng) + whole[start:])
    found = fuzzing.outcome(lambda: import_adapter(tmp_path, model), file)
    if not isinstance(found, Exception):
      jax.tree.map(np.testing.assert_array_equal, found, expected)
