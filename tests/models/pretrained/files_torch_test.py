"""Files of torch.save; collected where torch is installed."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lora_opt.models.pretrained.weight_files import open_weights

STATE = {
  'x': torch.arange(6, dtype=torch.float32).reshape(2, 3),
  'y': torch.arange(4, dtype=torch.bfloat16),
  'transposed': torch.arange(6, dtype=torch.float16).reshape(2, 3).T,
  'ids': torch.arange(3),
}


@pytest.mark.parametrize('new', [True, False])
def test_values_and_types(tmp_path, new):
  file = tmp_path / 'pytorch_model.bin'
  torch.save(STATE, file, _use_new_zipfile_serialization=new)
  found = open_weights(tmp_path)
  assert found.keys() == STATE.keys()
  assert found['y'].dtype == jnp.bfloat16
  for name, tensor in found.items():
    expected = STATE[name].to(torch.float32).numpy()
    assert (tensor.shape, tensor.file) == (expected.shape, file)
    np.testing.assert_array_equal(tensor.open().astype(np.float32), expected)


def test_index(tmp_path):
  torch.save(STATE, tmp_path / 'part.bin')
  index = tmp_path / 'pytorch_model.bin.index.json'
  index.write_text(json.dumps({'weight_map': dict.fromkeys(STATE, 'part.bin')}))
  assert open_weights(tmp_path).keys() == STATE.keys()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (torch.nn.Linear(2, 2), 'is not a complete file of torch.save'),
    ({'x': STATE['x'], 'step': 3}, 'step is not a tensor, expected a table'),
    ([STATE['x']], 'list is not a tensor, expected a table'),
  ],
)
def test_something_else(tmp_path, content, message):
  torch.save(content, tmp_path / 'pytorch_model.bin')
  with pytest.raises(ValueError, match=rf'pytorch_model\.bin.*{message}'):
    open_weights(tmp_path)


@pytest.mark.parametrize('size', [0, 4, 300, 900])
def test_cut_short(tmp_path, size):
  file = tmp_path / 'pytorch_model.bin'
  torch.save(STATE, file)
  file.write_bytes(file.read_bytes()[:size])
  with pytest.raises(ValueError, match=rf'\.bin \({size} bytes\) is not a com'):
    open_weights(tmp_path)


@pytest.mark.filterwarnings('ignore:ComplexHalf')
def test_a_type_that_numpy_lacks(tmp_path):
  content = {'x': torch.zeros(2, dtype=torch.complex32)}
  torch.save(content, tmp_path / 'pytorch_model.bin')
  with pytest.raises(ValueError, match='tensor x is of type complex32, expect'):
    open_weights(tmp_path)
