"""Records of TFDS folders: parsed as they were written, or refused."""

import json
import struct

import pytest
from array_record.python import array_record_module

from lora_opt.data import sources
from lora_opt.data.sources import _tf_example
from tests import fuzzing


def example(**features):
  """A serialized tf.train.Example, of (number of the list, its bytes)."""

  def sized(number, data):
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data

  entries = b''.join(
    sized(1, sized(1, key.encode()) + sized(2, value))
    for key, value in features.items()
  )
  return sized(1, entries)


TEXT = b'\n\x03\n\x01a'  # a list of one text, 'a'


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    (example(q=TEXT), "field 'n': no value"),
    (example(q=TEXT, n=TEXT), "field 'n': must hold int, found bytes"),
    (example(q=b'\n\x03\n\x01\xff', n=b'\x1a\x03\n\x01\x05'), 'not UTF-8'),
    (example(q=b'\n\x00', n=b'\x1a\x03\n\x01\x05'), '0 values, declared are 1'),
    (example(q=TEXT, n=b'\x1a\x04\n\x02\x05\x05'), '2 values, declared are 1'),
    (example(q=TEXT) * 2, "the key 'q' occurs twice"),
    (example(q=TEXT + TEXT), 'does not hold one list'),
    (example(q=TEXT)[:-1], 'cut short'),
    (b'\xff' * 20, 'a number of more than 64 bits'),
    (b'hello', 'cut short|no message|that no tf.train'),
    (b'\x08\x01', 'a field 1 that no tf.train'),
    (example(q=b'\x12\x05\n\x03abc'), 'a list of floats is cut short'),
    (example(q=TEXT, n=b'\x1a\x03\n\x01\x05') + b'x' * 500, 'bytes, at most'),
  ],
)
def test_a_record_that_is_no_row_is_a_bad_row(tmp_path, record, message):
  good = example(q=TEXT, n=b'\x1a\x03\n\x01\x05')
  folder = tmp_path / 'rows_toy/1.0.0'
  folder.mkdir(parents=True)
  shard = folder / 'rows_toy-train.array_record-00000-of-00001'
  writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1')
  for one in (good, record, good):
    writer.write(one)
  writer.close()
  info = {
    'name': 'rows_toy',
    'version': '1.0.0',
    'fileFormat': 'array_record',
    'splits': [{'name': 'train', 'shardLengths': ['3']}],
  }
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  prefix = 'tensorflow_datasets.core.features.'
  fields = {
    'q': {'pythonClassName': prefix + 'text_feature.Text', 'text': {}},
    'n': {
      'pythonClassName': prefix + 'tensor_feature.Tensor',
      'tensor': {'shape': {}, 'dtype': 'int64', 'encoding': 'none'},
    },
  }
  features = {
    'pythonClassName': prefix + 'features_dict.FeaturesDict',
    'featuresDict': {'features': fields},
  }
  (folder / 'features.json').write_text(json.dumps(features))
  rows = sources.Tfds('rows_toy', 'train', str(tmp_path), longest=200)
  assert rows[0] == rows[2] == {'q': 'a', 'n': 5}
  with pytest.raises(ValueError, match=rf'row 1, .*({message})'):
    rows[1]


def test_records_are_parsed_or_refused():
  values = {
    'a': (bytes, [b'x', b'']),
    'b': (int, [1, -1, 2**63 - 1, -(2**63)]),
    'c': (float, [0.5, -2.0]),
  }
  packed = b''.join(
    bytes(
      (v >> shift & 0x7F) | (0x80 if shift < 63 else 0)
      for shift in range(0, 70, 7)
    )
    for v in [value % 2**64 for value in values['b'][1]]
  )
  record = example(
    a=b'\n\x05\n\x01x\n\x00',
    b=b'\x1a'
    + bytes([len(packed) + 2])
    + b'\n'
    + bytes([len(packed)])
    + packed,
    c=b'\x12\x0a\n\x08' + struct.pack('<2f', 0.5, -2.0),
  )
  assert _tf_example.parse(record) == values
  for _, rng in fuzzing.seeds(2000):
    try:
      found = _tf_example.parse(fuzzing.damaged(record, rng))
    except ValueError:
      continue
    assert all(type(v) is kind for kind, vs in found.values() for v in vs)
