"""Weight files: every kind of damage is named by file, tensor, expectation."""

import importlib.util
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_opt.models.pretrained.files import open_safetensors
from lora_opt.models.pretrained.weight_files import open_weights
from tests.models.pretrained.checkpoint_files import rewrite_header

FIRST, SECOND = 'a-1.safetensors', 'a-2.safetensors'
INDEX = 'model.safetensors.index.json'
TENSORS = {
  'x': np.arange(6, dtype=np.float32).reshape(2, 3),
  'y': np.arange(4).astype(ml_dtypes.bfloat16),
  'ids': np.arange(3),
  'none': np.zeros((0, 2), np.float32),
}


@pytest.fixture(name='sharded')
def _sharded(tmp_path):
  """A folder of two files and the index to them."""
  save_file({'x': TENSORS['x']}, tmp_path / FIRST)
  rest = {name: value for name, value in TENSORS.items() if name != 'x'}
  save_file(rest, tmp_path / SECOND)
  places = {name: SECOND for name in rest} | {'x': FIRST}
  write_index(tmp_path, {'metadata': {}, 'weight_map': places})
  return tmp_path


def write_index(folder, content):
  (folder / INDEX).write_text(json.dumps(content))


def test_index_and_single_file_hold_the_same(sharded, tmp_path_factory):
  single = tmp_path_factory.mktemp('single')
  save_file(TENSORS, single / 'model.safetensors')
  for folder in (sharded, single):
    found = open_weights(folder)
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
      assert (tensor.shape, tensor.dtype) == (
        TENSORS[name].shape,
        TENSORS[name].dtype,
      )
      np.testing.assert_array_equal(tensor.open(), TENSORS[name])


def test_what_is_checked_of_a_tensor(sharded):
  found = open_weights(sharded)
  found['x'].check((2, 3))
  found['y'].check((4,))
  with pytest.raises(
    ValueError, match=rf'{FIRST}: tensor x has shape \(2, 3\), .* \(3, 2\)'
  ):
    found['x'].check((3, 2))
  with pytest.raises(
    ValueError, match=rf'{SECOND}: tensor ids is of type int64, weights must'
  ):
    found['ids'].check((3,))


def test_narrow_floats_are_no_weights(tmp_path):
  values = {'x': np.zeros(2, ml_dtypes.float8_e4m3fn)}
  save_file(values, tmp_path / 'model.safetensors')
  with pytest.raises(ValueError, match='tensor x is of type float8_e4m3fn'):
    open_weights(tmp_path)['x'].check((2,))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({}, f'{INDEX} has no weight_map'),
    ({'weight_map': {}}, f'{INDEX} has no weight_map'),
    ({'weight_map': ['x']}, f'{INDEX} has no weight_map'),
    ({'weight_map': {'x': 1}}, f'{INDEX} puts tensor x into 1, expected a f'),
    (
      {'weight_map': {'x': FIRST, 'y': FIRST, 'ids': SECOND}},
      f'puts tensor y into {FIRST}, which does not hold it .{SECOND} does',
    ),
    (
      {'weight_map': {'z': FIRST}},
      f'tensor z into {FIRST}, which does not hold it .no other file does',
    ),
    (['x'], f'{INDEX} holds a list of JSON, expected'),
  ],
)
def test_broken_index(sharded, content, message):
  write_index(sharded, content)
  with pytest.raises(ValueError, match=message):
    open_weights(sharded)


def test_index_names_an_absent_file(sharded):
  (sharded / SECOND).unlink()
  with pytest.raises(
    FileNotFoundError, match=f'no {SECOND} in .*{INDEX} puts tensor y'
  ):
    open_weights(sharded)


def test_no_weights(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r'no model\.safetensors in .*bin'
  ):
    open_weights(tmp_path)


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    (None, 'describes tensor x by None, expected dtype, shape and data_o'),
    ({'dtype': 'F32', 'shape': [2, 3]}, 'describes tensor x by'),
    ({'dtype': 'Q4', 'shape': [6], 'data_offsets': [0, 24]}, 'x is of type Q4'),
    (
      {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 24]},
      r'x of type F32 and shape \(2, 2\) has 24 bytes, expected 16',
    ),
    (
      {'dtype': 'F32', 'shape': [6], 'data_offsets': [-8, 16]},
      r'x of type F32 and shape \(6,\) has 24 bytes, expected 24',
    ),
    (
      {'dtype': 'F32', 'shape': [6], 'data_offsets': [8, 32]},
      r'is cut short: \d+ bytes, tensor x alone needs \d+',
    ),
  ],
)
def test_broken_header(tmp_path, entry, message):
  file = tmp_path / FIRST
  save_file({'x': TENSORS['x']}, file)
  rewrite_header(file, lambda header: header.update(x=entry))
  with pytest.raises(ValueError, match=rf'{FIRST}.*{message}'):
    open_safetensors(file)


def test_header_that_is_no_table(tmp_path):
  file = tmp_path / FIRST
  file.write_bytes(b'\x02' + bytes(7) + b'[]')
  with pytest.raises(ValueError, match='no table in its header'):
    open_safetensors(file)


def test_torch_files_need_torch(tmp_path, monkeypatch):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  find = importlib.util.find_spec
  monkeypatch.setattr(
    'importlib.util.find_spec',
    lambda name: None if name == 'torch' else find(name),
  )
  with pytest.raises(ImportError, match=r'pytorch_model\.bin can only be read'):
    open_weights(tmp_path)


def test_reading_leaves_no_mapping_behind(tmp_path):
  save_file({'x': np.ones((1024, 1024), np.float32)}, tmp_path / FIRST)
  tensor = open_safetensors(tmp_path / FIRST)['x']
  view = tensor.open()
  maps = pathlib.Path('/proc/self/maps')
  assert view.sum() == 2**20
  assert FIRST in maps.read_text()
  del view
  assert FIRST not in maps.read_text()
