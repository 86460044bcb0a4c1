"""Damaged safetensors files: as the library `safetensors` reads them, or not.

What it refuses is refused, and what is accepted is what it reads.
"""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lora_opt.models.pretrained.files import DTYPES, open_safetensors
from tests import fuzzing

TENSORS = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a.bias': np.arange(4).astype(ml_dtypes.bfloat16),
  'b': np.arange(3),
  'c': np.zeros((0, 2), np.float16),
  'd': np.array(3, np.float32),
}


def written(header, data):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


@pytest.fixture(scope='module', name='whole')
def _whole():
  """Header and data of a good file."""
  data = safetensors.numpy.save(TENSORS, metadata={'format': 'pt'})
  end = 8 + struct.unpack('<Q', data[:8])[0]
  return json.loads(data[8:end]), data[end:]


def theirs(data):
  """What the library reads; None if it refuses."""
  try:
    return dict(safetensors.deserialize(data))
  except safetensors.SafetensorError:
    return None


def compare(file, data):
  """Whether a file is accepted; what is must be what the library reads."""
  file.write_bytes(data)
  found = fuzzing.outcome(
    lambda: {n: t.open().copy() for n, t in open_safetensors(file).items()},
    file,
  )
  if isinstance(found, Exception):
    return False
  expected = theirs(data)
  assert expected is not None, 'the library refuses it'
  assert found.keys() == expected.keys()
  for name, array in found.items():
    assert array.dtype == DTYPES[expected[name]['dtype']]
    assert array.shape == tuple(expected[name]['shape'])
    assert array.tobytes() == expected[name]['data']
  return True


def damage_many(file, whole, seeds):
  header, data = whole
  accepted = 0
  for seed, rng in seeds:
    if seed % 2:
      damaged = written(fuzzing.damaged_json(header, rng), data)
    else:
      damaged = fuzzing.damaged(written(header, data), rng)
    accepted += compare(file, damaged)
  return accepted


def test_the_whole_file_is_read(tmp_path, whole):
  assert compare(tmp_path / 'x.safetensors', written(*whole))


def test_damaged_files(tmp_path, whole):
  file = tmp_path / 'x.safetensors'
  assert 0 < damage_many(file, whole, fuzzing.seeds(600)) < 300


@pytest.mark.long
def test_many_damaged_files(tmp_path, whole):
  damage_many(tmp_path / 'x.safetensors', whole, fuzzing.seeds(30_000, 10**6))


F32 = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
NEXT = F32 | {'data_offsets': [8, 16]}


@pytest.mark.parametrize(
  ('header', 'message'),
  [
    ({'x': F32 | {'data_offsets': [8, 0]}}, 'x of type F32 .* has -8 bytes'),
    ({'x': F32 | {'data_offsets': [0, 2**64]}}, 'data_offsets: expected a w'),
    ({'x': F32 | {'shape': [2**62, 4]}}, 'more than any file can hold'),
    ({'x': F32 | {'shape': [2**62, 2**62, 0]}}, 'more than any file can hold'),
    ({'x': F32 | {'shape': ['2']}}, "shape: expected a whole .* found '2'"),
    ({'x': F32 | {'shape': [2.9]}}, r'shape: expected a whole .* found 2\.9'),
    (
      {'x': F32 | {'shape': [True, 2]}},
      'shape: expected a w.* found True',
    ),
    ({'x': F32 | {'shape': [-1, -2]}}, 'shape: expected a whole .* found -1'),
    ({'x': F32 | {'shape': 2}}, 'shape: expected a list, found 2'),
    ({'x': F32 | {'shape': [1] * 65 + [2]}}, 'has 66 axes'),
    ({'x': F32 | {'data_offsets': [0]}}, 'data_offsets: expected a list of 2'),
    ({'x': F32 | {'dtype': 'F33'}}, 'dtype: expected one of'),
    ({'x': F32 | {'dtype': ['F32']}}, 'dtype: expected one of'),
    ({'x': F32 | {'more': 1}}, 'expected dtype, shape and data_offsets'),
    ({'x': F32, 'y': F32}, 'y overlaps x'),
    ({'x': F32, 'y': F32 | {'data_offsets': [4, 12]}}, 'y overlaps x'),
    (
      {'x': F32, 'y': NEXT | {'shape': [1], 'data_offsets': [12, 16]}},
      'y leaves a hole b',
    ),
    ({'x': NEXT}, 'x leaves a hole behind the header'),
    ({'x': F32}, '8 bytes behind its last tensor'),
    ({}, '16 bytes behind its last tensor'),
    (
      {'__metadata__': {'a': 1}, 'x': F32, 'y': NEXT},
      '__metadata__: .a.: expected a te',
    ),
    ({'__metadata__': 'a', 'x': F32, 'y': NEXT}, '__metadata__: expected an'),
    (b'{"x": 1, "x": 1}', "the key 'x' occurs twice"),
    (b'\xef\xbb\xbf{}', 'no table in its header'),
    (b'[]', 'no table in its header'),
    (b'{"a": {"dtype": NaN}}', 'NaN is not a number'),
    (b'{"a": "\xff"}', 'not UTF-8'),
    (b'{"a": ' + b'[' * 5000 + b']' * 5000 + b'}', 'nested more than'),
  ],
  ids=range(28),
)
def test_what_is_wrong_is_named(tmp_path, header, message):
  file = tmp_path / 'x.safetensors'
  data = written(header, bytes(16))
  file.write_bytes(data)
  with pytest.raises(ValueError, match=rf'x\.safetensors.*{message}'):
    open_safetensors(file)
  # Refused there too; what is not has a reason of our own.
  assert theirs(data) is None or 'more' in message or 'axes' in message


@pytest.mark.parametrize(
  'header',
  [
    {'x': F32, 'y': NEXT},
    {'y': NEXT, 'x': F32, '__metadata__': None},
    {'__metadata__': {}, 'x': F32 | {'shape': [4], 'data_offsets': [0, 16]}},
    {'x': F32 | {'shape': [2, 2, 1], 'data_offsets': [0, 16]}},
    {
      '': F32 | {'shape': [4], 'data_offsets': [0, 16]},
      'none': {'dtype': 'I64', 'shape': [3, 0], 'data_offsets': [16, 16]},
    },
  ],
)
def test_what_is_right_is_read(tmp_path, header):
  assert compare(tmp_path / 'x.safetensors', written(header, bytes(16)))
  padded = json.dumps(header).encode() + b'   '
  assert compare(tmp_path / 'x.safetensors', written(padded, bytes(16)))


def test_a_header_is_bounded(tmp_path):
  file = tmp_path / 'x.safetensors'
  with file.open('wb') as stream:
    stream.write(struct.pack('<Q', 2**33))
    stream.truncate(2**40)  # a hole, takes no room
  with pytest.raises(ValueError, match='header of 8,589,934,592 bytes, at mo'):
    open_safetensors(file)


def test_what_is_no_file_is_named(tmp_path):
  (tmp_path / 'folder.safetensors').mkdir()
  os.mkfifo(tmp_path / 'pipe.safetensors')
  (tmp_path / 'loop.safetensors').symlink_to('loop.safetensors')
  (tmp_path / 'link.safetensors').symlink_to('nowhere')
  for name, message in (
    ('folder', 'is a folder, not a file'),
    ('pipe', 'is a device or a pipe, not a file'),
    ('loop', 'is a link that leads nowhere'),
    ('link', 'is a link that leads nowhere'),
    ('absent', r'no absent\.safetensors in'),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      open_safetensors(tmp_path / f'{name}.safetensors')
