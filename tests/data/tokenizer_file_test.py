"""tokenizer.json, damaged and hostile, and ids that a model does not have."""

import copy
import dataclasses
import json

import pytest
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from lora_opt.data.gguf_vocabulary import read_vocabulary
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer
from lora_opt.models import random_model


def whole():
  """The content of a file with all parts."""
  core = Tokenizer.byte_level().core
  core.normalizer = normalizers.Sequence(
    [normalizers.Replace(Regex(' {2,}'), ' '), normalizers.NFC()]
  )
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(r'\p{N}{1,3}|\s+(?!\S)|\s+'), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  content = json.loads(core.to_str())
  content['model']['vocab'] |= {'aa': 256, 'aaaa': 257}
  for token in content['added_tokens']:
    token['id'] += 2
  content['model']['merges'] = [['a', 'a'], ['aa', 'aa']]
  return content


def split(pattern):
  pattern = {'Regex': pattern}
  return {'type': 'Split', 'pattern': pattern, 'behavior': 'Isolated'} | {
    'invert': False
  }


def replace(old, new, count=1):
  step = {'type': 'Replace', 'pattern': {'String': old}, 'content': new}
  return {'type': 'Sequence', 'normalizers': [step] * count}


def with_model(**settings):
  return lambda content: content['model'].update(settings)


def with_added(**settings):
  return lambda content: content['added_tokens'][0].update(settings)


def with_part(part, value):
  return lambda content: content.update({part: value})


CHARMAP = {'type': 'Precompiled', 'precompiled_charsmap': '/////wAAAAAAAAAA'}


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    (with_model(vocab={'a': 2**31}), "'a': expected a whole number from 0"),
    (with_model(vocab={'a': True}), "'a': expected a whole number"),
    (with_model(vocab={'a': 0, 'b': 0}), 'two tokens have the same id'),
    (with_model(vocab=None), 'vocab: expected an object'),
    (with_model(vocab=[['a', 1, 2]]), 'expected a list of 2'),
    (with_model(type='Nothing'), 'not a tokenizer'),
    (with_model(continuing_subword_prefix='##'), 'not a tokenizer that can'),
    (with_added(id=2**40), 'added_tokens: 0: id'),
    (with_added(content=5), 'added_tokens: 0: content'),
    (with_part('model', None), 'model: expected an object'),
    (with_part('pre_tokenizer', split('(a.+)+b')), 'cannot be run'),
    (with_part('pre_tokenizer', split('(')), 'cannot be run'),
    (with_part('normalizer', replace('a', 'aa', 30)), '64 times as long'),
    (with_part('normalizer', replace('', 'x')), 'cannot be run'),
    (with_part('decoder', replace('a', 'b' * 10**6)), '64 times as long'),
    (with_part('normalizer', CHARMAP), 'cannot be run'),
    (with_part('normalizer', [3]), 'normalizer: expected an object'),
    (
      with_part('pre_tokenizer', {'type': 'FixedLength', 'length': 0}),
      'cannot be run',
    ),
  ],
)
def test_what_cannot_be_read_or_run_is_refused(tmp_path, change, reason):
  content = whole()
  change(content)
  file = tmp_path / 'tokenizer.json'
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=reason) as caught:
    Tokenizer.from_folder(tmp_path)
  assert str(caught.value).startswith(str(file))


def test_what_is_whole_reads_as_its_library_reads_it(tmp_path):
  file = tmp_path / 'tokenizer.json'
  file.write_text(json.dumps(whole()))
  reference = tokenizers.Tokenizer.from_file(str(file))
  text = 'aaaa  é 1234\n<eos>'
  expected = reference.encode(text, add_special_tokens=False).ids
  assert Tokenizer.from_folder(tmp_path).encode(text) == expected
  file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())
  assert Tokenizer.from_folder(tmp_path).encode(text) == expected


def test_ids_are_not_drawn_at_random(tmp_path, caplog):
  content = whole()
  content['model']['dropout'] = 0.9
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  tokenizer = Tokenizer.from_folder(tmp_path)
  assert {tuple(tokenizer.encode('aaaa')) for _ in range(20)} == {(257,)}
  assert 'its dropout of merges is not used' in caplog.text


def test_a_failure_of_the_library_names_the_folder(tmp_path):
  content = whole()
  content['model'] = {'type': 'WordLevel', 'unk_token': 'x', 'vocab': {'a': 0}}
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  tokenizer = Tokenizer.from_folder(tmp_path)
  with pytest.raises(ValueError, match='cannot|can be run') as caught:
    tokenizer.encode('word')
  assert str(caught.value).startswith(str(tmp_path))


def test_an_id_beyond_the_embedding_is_refused(tmp_path):
  content = whole()
  vocab = content['model']['vocab']
  vocab['zz'] = 400  # with a gap before it: fewer tokens than ids
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  tokenizer = Tokenizer.from_folder(tmp_path)
  assert tokenizer.vocab_size < 399 < tokenizer.largest_id
  settings = {'num_layers': 1, 'remat': 'none'}
  model = random_model(vocab_size=401, **settings)
  dataclasses.replace(model, tokenizer=tokenizer)
  model = random_model(vocab_size=399, **settings)
  with pytest.raises(ValueError, match='a token of id 400'):
    dataclasses.replace(model, tokenizer=tokenizer)


ARRAYS = {
  'tokens': ['a', 'b', 'ab'],
  'token_type': [1, 1, 1],
  'scores': [0.0, -1.0, 2.0],
  'merges': ['a b'],
}


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'tokens': 'ab'}, 'tokens: expected a list'),
    ({'tokens': ['a', 3, 'ab']}, 'tokens: expected a text'),
    ({'tokens': ['a', 'a', 'ab']}, 'tokens has a token twice'),
    ({'tokens': ['a', 'b', 'x' * 2000]}, 'more than 1000 characters'),
    ({'token_type': [1, 1]}, 'token_type has 2 entries for 3 tokens'),
    ({'scores': [0.0, 0.0, float('nan')]}, 'not finite'),
    ({'scores': []}, 'scores has 0 entries'),
    ({'merges': ['ab']}, 'merges: expected two tokens'),
    ({'merges': [1]}, 'merges: expected a text'),
  ],
)
def test_arrays_of_a_gguf_file_are_checked(change, reason):
  arrays = copy.deepcopy(ARRAYS) | change
  with pytest.raises(ValueError, match=reason):
    read_vocabulary(arrays.get, 'merges' not in change)


@pytest.mark.parametrize(
  ('files', 'reason'),
  [
    ({'vocab.json': '{"a": "x"}', 'merges.txt': ''}, 'vocab.json: .*number'),
    ({'vocab.json': '[]', 'merges.txt': ''}, 'vocab.json'),
    ({'vocab.json': '{"a": 0}', 'merges.txt': 'a'}, 'merges.txt, line 1'),
    ({'vocab.json': '{"a": 0}', 'merges.txt': 'a b'}, 'do not fit'),
    ({'vocab.txt': b'\xff\xfe'}, 'vocab.txt: not UTF-8'),
    ({'vocab.txt': 'a\nb'}, r'vocab.txt has no \[PAD\]'),
    ({'spiece.model': b'\x0a\xff\xff'}, 'spiece.model is not a Sentence'),
    ({'spiece.model': b''}, 'spiece.model is not a Sentence'),
  ],
)
def test_vocabulary_files_are_checked(tmp_path, files, reason):
  for name, content in files.items():
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=reason) as caught:
    open_tokenizer(tmp_path)
  assert str(tmp_path) in str(caught.value)
