"""What the files beside a tokenizer say of its special tokens."""

import json

import pytest

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer
from lora_opt.data.tokenizer_settings import read_settings

END = '<|endoftext|>'


def put(folder, name, content):
  (folder / name).write_text(json.dumps(content), encoding='utf-8')


@pytest.fixture
def folder(tmp_path):
  """A tokenizer.json without a word on its special tokens."""
  core = Tokenizer.byte_level().core
  core.add_special_tokens([END, '<s>', '</s>', '<|eot|>'])
  core.save(str(tmp_path / 'tokenizer.json'))
  return tmp_path


def ids(folder):
  tokenizer = open_tokenizer(folder)
  return [
    None if token is None else tokenizer.core.id_to_token(token)
    for token in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
  ]


@pytest.mark.parametrize(
  ('file', 'content', 'expected'),
  [
    ('config.json', {'model_type': 'gpt2'}, [END, END, None]),
    ('config.json', {'model_type': 'llama'}, [None, None, None]),
    ('config.json', {'model_type': ['x']}, [None, None, None]),
    (
      'tokenizer_config.json',
      {'tokenizer_class': 'GPT2TokenizerFast'},
      [END, END, None],
    ),
    (
      'tokenizer_config.json',
      {'tokenizer_class': 'LlamaTokenizer'},
      ['<s>', '</s>', None],
    ),
    (
      'tokenizer_config.json',
      {'tokenizer_class': 'GPT2Tokenizer', 'bos_token': None},
      [None, END, None],
    ),
    (
      'tokenizer_config.json',
      {'tokenizer_class': 'GPT2Tokenizer', 'bos_token': '', 'pad_token': ''},
      [None, END, None],
    ),
    (
      'tokenizer_config.json',
      {'tokenizer_class': 'GPT2Tokenizer', 'pad_token': '<pad>'},
      [END, END, '<pad>'],
    ),
    # Defaults that the vocabulary does not have are none.
    (
      'tokenizer_config.json',
      {'tokenizer_class': 'BertTokenizer'},
      [None, None, None],
    ),
    ('special_tokens_map.json', {'eos_token': '</s>'}, [None, '</s>', None]),
    (
      'special_tokens_map.json',
      {'bos_token': {'content': '<s>', 'lstrip': False}},
      ['<s>', None, None],
    ),
  ],
)
def test_what_names_the_special_tokens(folder, file, content, expected):
  put(folder, file, content)
  assert ids(folder) == expected


def test_the_map_of_older_folders_counts_only_there(folder):
  put(folder, 'special_tokens_map.json', {'eos_token': '</s>'})
  settings = {'eos_token': END}
  put(folder, 'tokenizer_config.json', settings)
  assert ids(folder)[1] == '</s>'
  put(folder, 'tokenizer_config.json', settings | {'added_tokens_decoder': {}})
  assert ids(folder)[1] == END


@pytest.mark.parametrize(
  ('eos', 'expected'),
  [([256, 262], (256, 262)), (262, (262,)), (None, ()), (-1, ())],
)
def test_several_tokens_end_a_text(folder, eos, expected):
  put(folder, 'generation_config.json', {'eos_token_id': eos})
  put(folder, 'config.json', {'eos_token_id': 7})
  tokenizer = Tokenizer.from_folder(folder)
  assert tokenizer.end_ids == expected
  put(folder, 'tokenizer_config.json', {'eos_token': '</s>'})
  tokenizer = Tokenizer.from_folder(folder)
  stops = tokenizer.stops(chat=False)
  assert set(stops.ids) == {tokenizer.eos_id, *expected}


def test_added_tokens_are_part_of_the_vocabulary(folder, caplog):
  size = Tokenizer.from_folder(folder).vocab_size
  put(folder, 'added_tokens.json', {'<new>': size, '<s>': 0})
  tokenizer = Tokenizer.from_folder(folder)
  assert tokenizer.encode('a<new>') == [97, size]
  assert "token '<s>' is said to have id 0" in caplog.text
  (folder / 'added_tokens.json').unlink()
  token = {'content': '<new>', 'special': True}
  put(folder, 'tokenizer_config.json', {'added_tokens_decoder': {size: token}})
  tokenizer = Tokenizer.from_folder(folder)
  assert tokenizer.encode('<new>') == [size]
  assert tokenizer.decode([97, size]) == 'a'


@pytest.mark.parametrize(
  ('file', 'content', 'reason'),
  [
    ('tokenizer_config.json', {'eos_token': 5}, 'eos_token: expected a text'),
    ('tokenizer_config.json', {'eos_token': {}}, 'eos_token: content'),
    ('tokenizer_config.json', {'eos_token': '<no>'}, "'<no>' as eos_token"),
    ('tokenizer_config.json', {'add_bos_token': 'no'}, 'add_bos_token'),
    ('tokenizer_config.json', [], 'a list of JSON, expected an object'),
    (
      'tokenizer_config.json',
      {'added_tokens_decoder': {'x': {}}},
      "'x' is not an id",
    ),
    (
      'tokenizer_config.json',
      {'added_tokens_decoder': {'1': {'content': 1}}},
      'added_tokens_decoder: 1: content',
    ),
    ('generation_config.json', {'eos_token_id': ['2']}, 'eos_token_id'),
    ('generation_config.json', {'eos_token_id': 2**40}, 'eos_token_id'),
    ('added_tokens.json', {'<a>': 'x'}, 'expected a whole number'),
  ],
)
def test_what_is_wrong_is_named(folder, file, content, reason):
  put(folder, file, content)
  with pytest.raises(ValueError, match=reason) as caught:
    Tokenizer.from_folder(folder)
  assert str(folder / file) in str(caught.value)


def test_a_folder_may_say_nothing(tmp_path):
  settings = read_settings(tmp_path)
  assert settings.tokens == settings.defaults == settings.added == {}
  assert settings.template.text is None
