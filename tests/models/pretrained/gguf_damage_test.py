"""Damaged GGUF files: what the package `gguf` reads, or a clear error."""

import os
import struct
import warnings

import gguf
import numpy as np
import pytest

from lora_opt.data.gguf_file import open_gguf
from lora_opt.models.pretrained.gguf import from_gguf
from lora_opt.models.random_model import random_model
from tests import fuzzing
from tests.models.pretrained.checkpoint_files import gguf_tensors, write_gguf

KINDS = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1')


@pytest.fixture(scope='module', name='files')
def _files(tmp_path_factory):
  """The bytes of a good file of each kind, and where its data begin."""
  model, folder = random_model(num_layers=1), tmp_path_factory.mktemp('gguf')
  found = []
  for kind in KINDS:
    path = folder / f'{kind}.gguf'
    write_gguf(path, model, kind=kind)
    start = min(tensor.begin for tensor in open_gguf(path).tensors.values())
    found.append((path.read_bytes(), start))
  return found


def contents(path):
  """All that our reader makes of a file."""
  file = open_gguf(path)
  fields = {key: file.value(key) for key in file.fields}
  tensors = {
    name: (tensor.kind, file.read(tensor).copy())
    for name, tensor in file.tensors.items()
  }
  return fields, tensors


def compare(path):
  """Whether a file is accepted; what is must be what `gguf` reads."""
  found = fuzzing.outcome(lambda: contents(path), path)
  if isinstance(found, Exception):
    return False
  fields, tensors = found
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    theirs = gguf.GGUFReader(path)
  expected = {
    key: field.contents()
    for key, field in theirs.fields.items()
    if not key.startswith('GGUF.')
  }
  np.testing.assert_equal(fields, expected)
  assert tensors.keys() == {tensor.name for tensor in theirs.tensors}
  for tensor in theirs.tensors:
    kind, data = tensors[tensor.name]
    assert kind == tensor.tensor_type
    assert (data.dtype, data.shape) == (tensor.data.dtype, tensor.data.shape)
    assert data.tobytes() == tensor.data.tobytes()
  return True


def damage_many(path, files, seeds, check):
  accepted = 0
  for seed, rng in seeds:
    data, start = files[seed % len(files)]
    # Most of a file are weights, in which nothing can be found.
    head, rest = data[:start], data[start:]
    if seed % 3 == 0:
      head, rest = data, b''
    elif seed % 3 == 1:  # the part before the vocabulary
      head, rest = data[:600], data[600:]
    path.write_bytes(fuzzing.damaged(head, rng) + rest)
    accepted += check(path)
  return accepted


def test_whole_files_are_read(tmp_path, files):
  for data, _ in files:
    (tmp_path / 'm.gguf').write_bytes(data)
    assert compare(tmp_path / 'm.gguf')


def test_damaged_files(tmp_path, files):
  path = tmp_path / 'm.gguf'
  assert 5 < damage_many(path, files, fuzzing.seeds(300), compare) < 150


@pytest.mark.long
def test_many_damaged_files(tmp_path, files):
  seeds = fuzzing.seeds(20_000, 10**6)
  damage_many(tmp_path / 'm.gguf', files, seeds, compare)


def loads(path):
  found = fuzzing.outcome(lambda: from_gguf(path), path)
  if isinstance(found, Exception):
    return False
  leaves = [np.asarray(x) for x in (found.base['embedding']['table'],)]
  return all(np.isfinite(leaf).all() for leaf in leaves)


def test_models_of_damaged_files(tmp_path, files):
  assert damage_many(tmp_path / 'm.gguf', files, fuzzing.seeds(60), loads) < 40


@pytest.mark.long
def test_models_of_many_damaged_files(tmp_path, files):
  seeds = fuzzing.seeds(2000, 10**6)
  damage_many(tmp_path / 'm.gguf', files, seeds, loads)


def text(value):
  return struct.pack('<Q', len(value)) + value


def gguf_bytes(*, version=3, tensors=0, keys=0, body=b''):
  return b'GGUF' + struct.pack('<IQQ', version, tensors, keys) + body


ARRAY, TEXT, U32 = 9, 8, 4


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (gguf_bytes(keys=2**62), 'calls for .* keys and 0 tensors, too many'),
    (gguf_bytes(tensors=2**62), 'keys and 4,611,.* tensors, too many'),
    (
      gguf_bytes(
        keys=1, body=text(b'a') + struct.pack('<IIQ', ARRAY, TEXT, 2**62)
      ),
      'key a has 4,611,.* texts, too many',
    ),
    (
      gguf_bytes(
        keys=1, body=text(b'a') + struct.pack('<IIQ', ARRAY, U32, 2**62)
      ),
      'cut short: key a at byte',
    ),
    (
      gguf_bytes(
        keys=1,
        body=text(b'a') + struct.pack('<I', ARRAY) * 9 + bytes(30),
      ),
      'is a list of type 9, only texts and numbers',
    ),
    (
      gguf_bytes(keys=1, body=struct.pack('<Q', 2**63) + bytes(40)),
      'cut short: a key at byte',
    ),
    (
      gguf_bytes(
        keys=2, body=(text(b'a') + struct.pack('<II', U32, 1)) * 2
      ),
      'the key a occurs twice',
    ),
    (
      gguf_bytes(
        keys=1, body=text(b'general.alignment') + struct.pack('<II', U32, 3)
      ),
      'alignment is 3, not a power of 2',
    ),
    (gguf_bytes(version=3 << 24), 'version is 50331648.*big-endian'),
    (gguf_bytes(version=1), 'version is 1, known are 2 and 3'),
    (b'', r'\(0 bytes\) is not a GGUF file'),
    (
      gguf_bytes(tensors=1, body=text(b't') + struct.pack('<I', 5) + bytes(60)),
      'tensor t has 5 axes',
    ),
    (
      gguf_bytes(
        tensors=1,
        body=text(b't') + struct.pack('<IQQIQ', 2, 2**62, 0, 0, 0),
      ),
      'tensor t has shape .* more than the file can hold',
    ),
    (
      gguf_bytes(
        tensors=1, body=text(b't') + struct.pack('<IQIQ', 1, 8, 8, 0)
      ),
      'tensor t of type Q8_0 has rows of 8, no multiple of 32',
    ),
  ],
  ids=range(14),
)  # fmt: skip
def test_what_is_declared_is_checked_first(tmp_path, data, message):
  path = tmp_path / 'm.gguf'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=rf'm\.gguf.*{message}'):
    open_gguf(path)


def test_places_of_tensors(tmp_path):
  def write(*places, extra=0):
    body = b''.join(
      text(b't%d' % i) + struct.pack('<IQIQ', 1, 8, 0, place)
      for i, place in enumerate(places)
    )
    data = gguf_bytes(tensors=len(places), body=body)
    data += bytes(-len(data) % 32 + 32 * len(places) + extra)
    (tmp_path / 'm.gguf').write_bytes(data)
    return open_gguf(tmp_path / 'm.gguf')

  assert write(32, 0).tensors.keys() == {'t0', 't1'}
  for places, extra, message in (
    ((0, 0), 0, 't1 overlaps t0'),
    ((0, 64), 32, 't1 leaves a hole behind t0'),
    ((32, 64), 32, 't0 leaves a hole behind the header'),
    ((0, 32), 1, '1 bytes stand behind its last tensor'),
    ((0, 64), 0, 'cut short: .* tensor t1 alone needs'),
  ):
    with pytest.raises(ValueError, match=message):
      write(*places, extra=extra)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'llama.block_count': 'two'}, "block_count: expected a whole .* 'two'"),
    ({'llama.block_count': 10**9}, 'block_count: expected a whole number fr'),
    ({'llama.attention.head_count': 0}, 'head_count: expected a whole number'),
    ({'llama.attention.head_count': 1.5}, 'head_count: expected a whole numb'),
    ({'llama.rope.freq_base': float('nan')}, 'freq_base: expected a finite'),
    ({'llama.rope.freq_base': -1.0}, 'freq_base: expected a finite'),
    ({'llama.rope.scaling.type': 3}, 'scaling.type: expected a text, found 3'),
    ({'llama.attention.layer_norm_rms_epsilon': 'x'}, 'epsilon: expected a f'),
    ({'llama.attention.head_count_kv': 3}, r'm\.gguf: num_heads=4 must be a m'),
  ],
)
def test_settings_of_the_wrong_type(tmp_path, settings, message):
  write_gguf(tmp_path / 'm.gguf', random_model(num_layers=1), **settings)
  with pytest.raises(ValueError, match=message):
    from_gguf(tmp_path / 'm.gguf')


def test_a_scale_that_is_not_a_number_is_named(tmp_path):
  path = tmp_path / 'm.gguf'
  write_gguf(path, random_model(num_layers=1), kind='Q8_0')
  tensor = open_gguf(path).tensors['blk.0.ffn_up.weight']
  data = bytearray(path.read_bytes())
  data[tensor.begin : tensor.begin + 2] = np.float16(np.nan).tobytes()
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r'blk\.0\.ffn_up\.weight has 32 values'):
    from_gguf(path)


def test_divisors_of_another_shape_are_refused(tmp_path):
  model = random_model(num_layers=1)
  tensors = gguf_tensors(model) | {'rope_freqs.weight': np.ones(3, np.float32)}
  write_gguf(tmp_path / 'm.gguf', model, tensors)
  with pytest.raises(ValueError, match=r'rope_freqs\.weight is F32 of shape'):
    from_gguf(tmp_path / 'm.gguf')


def test_what_is_no_file_is_named(tmp_path):
  os.mkfifo(tmp_path / 'pipe.gguf')
  with pytest.raises(ValueError, match='is a device or a pipe'):
    open_gguf(tmp_path / 'pipe.gguf')
  with pytest.raises(ValueError, match='is a folder, not a file'):
    open_gguf(tmp_path)
