import json

import pytest

from lora_opt.reading.json_text import parse_json, read_json


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    ('{"a": NaN}', 'NaN is not a number'),
    ('[-Infinity]', 'Infinity is not a number'),
    ('[1e999]', "the number '1e999' is too large"),
    ('[' + '9' * 5000 + ']', 'a whole number of 5000 digits'),
    ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    ('{"b": {"a": 1, "c": 2, "a": 1}}', "the key 'a' occurs twice"),
    (r'["\ud800"]', 'half a surrogate pair'),
    (r'{"\udc00x": 1}', 'half a surrogate pair'),
    ('[' * 101 + ']' * 101, 'nested more than 100 deep'),
    ('[' * 100_000 + ']' * 100_000, 'nested more than 100 deep'),
    ('[' * 100_000, 'nested more than 100 deep'),
    ('{"a": 1} x', 'Extra data at line 1, column 10'),
    ('', 'Expecting value'),
    (b'["\xff"]', 'not UTF-8: byte 0xff at position 2'),
    ('[0]' + ' ' * 2000, 'at most 1,000 are read'),
  ],
  ids=range(15),
)
def test_what_has_no_one_meaning_is_refused(data, reason):
  most = 1000 if '2000' in reason or 'at most 1,000' in reason else 10**6
  with pytest.raises(ValueError) as caught:
    parse_json(data, 'x.json:3', most=most)
  assert str(caught.value).startswith('x.json:3: ')
  assert reason in str(caught.value)
  assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
  'value',
  [None, 1.5, 'é😀', {'a': ['\u2028', {}, True]}, 2**64, [[[[]]]], '[' * 200],
)
@pytest.mark.parametrize('ascii', [True, False])
def test_what_is_json_is_read(value, ascii):
  data = json.dumps(value, ensure_ascii=ascii)
  assert parse_json(data, 'x') == value
  assert parse_json(data.encode('utf-8-sig'), 'x') == value


def test_a_file_that_is_missing_or_of_another_kind_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no a\.json in '):
    read_json(tmp_path / 'a.json')
  with pytest.raises(ValueError, match='is a folder, not a file'):
    read_json(tmp_path)
  (tmp_path / 'a.json').write_text('[1]')
  with pytest.raises(ValueError, match=r'a\.json holds a list .* an object'):
    read_json(tmp_path / 'a.json')
  assert read_json(tmp_path / 'a.json', kind=list) == [1]
