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
from tests import fuzzing
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
    ({}, f'{INDEX}: weight_map: expected an object, found None'),
    ({'weight_map': {}}, f'{INDEX}: weight_map is empty'),
    ({'weight_map': ['x']}, f'{INDEX}: weight_map: expected an object'),
    ({'weight_map': {'x': 1}}, f'{INDEX}: tensor x: 1 is not the path of a f'),
    ({'weight_map': {'x': '../a'}}, "x: '../a' is not the path of a file ins"),
    ({'weight_map': {'x': '/etc/passwd'}}, "x: '/etc/passwd' is not the path"),
    ({'weight_map': {'x': '.'}}, "x: '.' is not the path of a file inside"),
    (
      {'weight_map': {'x': FIRST, 'y': FIRST, 'ids': SECOND}},
      f'puts tensor y into {FIRST}, which does not hold it .*{SECOND} does',
    ),
    (
      {'weight_map': {'z': FIRST}},
      f'tensor z into {FIRST}, which does not hold it .no file does',
    ),
    (['x'], f'{INDEX} holds a list of JSON, expected an object'),
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
    (None, 'tensor x: expected an object, found None'),
    ({'dtype': 'F32', 'shape': [2, 3]}, 'x is described by .*, expected dty'),
    ({'dtype': 'Q4', 'shape': [6], 'data_offsets': [0, 24]}, 'x: dtype: expec'),
    (
      {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 24]},
      r'x of type F32 and shape \(2, 2\) has 24 bytes by .*, expected 16',
    ),
    (
      {'dtype': 'F32', 'shape': [6], 'data_offsets': [-8, 16]},
      r'x: data_offsets: expected a whole number from 0 .*, found -8',
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


def test_a_single_file_goes_before_an_index_as_in_transformers(sharded):
  save_file({'z': TENSORS['x']}, sharded / 'model.safetensors')
  assert open_weights(sharded).keys() == {'z'}


def test_tensors_that_the_index_leaves_out_are_read_as_in_transformers(sharded):
  write_index(sharded, {'weight_map': {'x': FIRST, 'y': SECOND}})
  assert open_weights(sharded).keys() == TENSORS.keys()


def test_one_name_in_two_files(sharded):
  twice = {name: TENSORS[name] for name in ('x', 'y')}
  save_file(twice, sharded / SECOND)
  write_index(sharded, {'weight_map': {'x': FIRST, 'y': SECOND}})
  assert open_weights(sharded).keys() == {'x', 'y'}
  twice['x'] = twice['x'] + np.float32([[0, 0, 0], [0, 1, 0]])
  save_file(twice, sharded / SECOND)
  with pytest.raises(
    ValueError, match=r'x should be a copy of x .* they are .* at \[1, 1\]'
  ):
    open_weights(sharded)


def test_what_stands_in_the_place_of_a_file_is_named(sharded):
  for name, message in (
    (SECOND, rf'{SECOND} is a folder, not a file'),
    (INDEX, rf'{INDEX} is a folder, not a file'),
    ('model.safetensors', r'model\.safetensors is a folder, not a file'),
  ):
    (sharded / name).unlink(missing_ok=True)
    (sharded / name).mkdir()
    with pytest.raises(ValueError, match=message):
      open_weights(sharded)
    (sharded / name).rmdir()
    if name != 'model.safetensors':
      (sharded / name).symlink_to(name)
      with pytest.raises(FileNotFoundError, match=name):
        open_weights(sharded)


def test_damaged_indexes(sharded):
  places = json.loads((sharded / INDEX).read_text())
  read = {True: 0, False: 0}
  for _, rng in fuzzing.seeds(400):
    (sharded / INDEX).write_bytes(fuzzing.damaged_json(places, rng))
    found = fuzzing.outcome(lambda: open_weights(sharded), sharded)
    good = not isinstance(found, Exception)
    read[good] += 1
    if good:
      for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.open(), TENSORS[name])
  assert min(read.values()) > 20
