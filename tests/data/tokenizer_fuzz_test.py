"""Damaged tokenizers and templates: a clear error, or what they say."""

import json
import random
import types

import pytest
import tokenizers

from lora_opt.data import encoding
from lora_opt.data import tokenizer as tokenizer_module
from lora_opt.data.chat_template import ChatTemplate
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer
from lora_opt.data.turns import cut_of
from tests import fuzzing
from tests.data import templates
from tests.data.sentencepiece_tokenizer_test import train
from tests.data.tokenizer_file_test import whole

TEXT = 'aaaa  é 1234\n<eos> and so on'
HI = [{'role': 'user', 'content': 'Hi'}]
SETTINGS = {
  'bos_token': '<bos>',
  'eos_token': {'content': '<eos>', 'lstrip': False},
  'pad_token': None,
  'add_bos_token': True,
  'tokenizer_class': 'PreTrainedTokenizerFast',
  'chat_template': [{'name': 'default', 'template': templates.chatml()}],
  'added_tokens_decoder': {'258': {'content': '<bos>', 'special': True}},
}
FILES = {
  'tokenizer_config.json': SETTINGS,
  'generation_config.json': {'eos_token_id': [257, 258]},
  'special_tokens_map.json': {'eos_token': '<eos>'},
  'added_tokens.json': {'<bos>': 258, '<new>': 264},
}
COUNTS = [120, pytest.param(8000, marks=pytest.mark.long)]


def put(folder, files):
  for name, content in files.items():
    data = content if isinstance(content, bytes) else json.dumps(content)
    data = data if isinstance(data, bytes) else data.encode()
    (folder / name).write_bytes(data)


@pytest.mark.parametrize('count', COUNTS)
def test_tokenizer_json(tmp_path, count):
  content, file = whole(), tmp_path / 'tokenizer.json'

  def read():
    tokenizer = Tokenizer.from_folder(tmp_path)
    ids = tokenizer.encode(TEXT)
    tokenizer.decode(ids)
    return tokenizer, ids

  read_whole = 0
  for _, rng in fuzzing.seeds(count):
    data = fuzzing.damaged_json(content, rng)
    file.write_bytes(data)
    found = fuzzing.outcome(read, tmp_path)
    if isinstance(found, tuple):
      tokenizer, ids = found
      read_whole += 1
      reference = tokenizers.Tokenizer.from_buffer(data)
      reference.no_truncation()
      if not getattr(reference.model, 'dropout', None):
        assert ids == reference.encode(TEXT, add_special_tokens=False).ids
      assert max(ids, default=0) <= tokenizer.largest_id
  assert read_whole > count // 50


@pytest.mark.parametrize('count', COUNTS)
def test_the_files_beside_it(tmp_path, count):
  put(tmp_path, {'tokenizer.json': whole()})

  def read():
    tokenizer = Tokenizer.from_folder(tmp_path)
    if tokenizer.chat_template is not None:
      encoding.encode_completions(tokenizer, 'Hi', ['yes'], chat=True)
    return tokenizer

  for _, rng in fuzzing.seeds(count):
    name = rng.choice(sorted(FILES))
    put(tmp_path, FILES | {name: fuzzing.damaged_json(FILES[name], rng)})
    found = fuzzing.outcome(read, tmp_path)
    if isinstance(found, Tokenizer):
      for token in (found.bos_id, found.eos_id, found.pad_id):
        assert token is None or 0 <= token <= found.largest_id


def hostile(template: str, rng: random.Random) -> str:
  """A template with pieces moved, doubled or put in."""
  pieces = (
    '{% for i in range(99999) %}',
    '{% endfor %}',
    '{% if x %}',
    "{{ 'a' * 999999999 }}",
    '{{ messages }}',
    '{{ [] | sum(start=1) }}',
    '{% generation %}',
    '{% set messages = 3 %}',
    '{{ messages[9].content.nothing.here }}',
    '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    '\ud800'.encode('utf-8', 'replace').decode(),
    '{{ 9 ** 9 ** 9 }}',
    "{{ '%999999999d' | format(3) }}",
  )
  for _ in range(rng.choice((1, 1, 2, 3))):
    at = rng.randrange(len(template) + 1)
    end = min(len(template), at + rng.choice((0, 1, 5, 30)))
    put_in = rng.choice(('', '', template[at : at + 40], rng.choice(pieces)))
    template = template[:at] + put_in + template[end:]
  return template


@pytest.mark.parametrize('count', COUNTS)
def test_templates(count):
  texts = [published.template for published in templates.TEMPLATES.values()]
  plain = templates.tokenizer_of('chatml')
  for seed, rng in fuzzing.seeds(count):
    text = hostile(rng.choice(texts), rng)
    place = f'folder/{seed}.jinja'

    def render(text=text, place=place):
      template = ChatTemplate(text, place)
      return template.render([(HI, True)], {'bos_token': '<s>'})

    def encode(text=text, place=place):
      tokenizer = Tokenizer(
        plain.core,
        eos_id=plain.eos_id,
        chat_template=text,
        template_place=place,
      )
      cut = cut_of(tokenizer)
      found = encoding.encode_completions(tokenizer, 'Hi', ['yes'], chat=True)
      return tokenizer, cut, found

    if isinstance(fuzzing.outcome(render, place), ValueError):
      continue
    found = fuzzing.outcome(encode, place)
    if isinstance(found, tuple):
      tokenizer, cut, (prompt, (completion,)) = found
      turns = [cut.message('user', 'Hi'), cut.message('assistant', 'yes')]
      ids = tokenizer.encode(tokenizer.apply_chat(turns, False))
      both = prompt + (completion if cut.end else completion[:-1])
      assert ids[: len(both)] == both


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize('kind', ['byte pairs', 'wordpiece'])
def test_vocabulary_files(tmp_path, kind, count):
  if kind == 'wordpiece':
    pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', '##b', 'é']
    files = {'vocab.txt': '\n'.join(pieces).encode()}
  else:
    vocab = {'a': 0, 'b': 1, 'ab': 2, '<|endoftext|>': 3}
    merges = b'#version: 0.2\na b\n'
    files = {'vocab.json': json.dumps(vocab).encode(), 'merges.txt': merges}
  for _, rng in fuzzing.seeds(count):
    name = rng.choice(sorted(files))
    put(tmp_path, files | {name: fuzzing.damaged(files[name], rng)})
    found = fuzzing.outcome(lambda: open_tokenizer(tmp_path), tmp_path)
    if isinstance(found, Tokenizer):
      fuzzing.outcome(lambda found=found: found.encode('ab é'), tmp_path)


@pytest.mark.parametrize('count', [60, *COUNTS[1:]])
def test_sentencepiece_models(tmp_path, count):
  data = train(vocab_size=40)
  for _, rng in fuzzing.seeds(count):
    put(tmp_path, {'spiece.model': fuzzing.damaged(data, rng)})
    found = fuzzing.outcome(lambda: open_tokenizer(tmp_path), tmp_path)
    if not isinstance(found, Exception):
      fuzzing.outcome(lambda found=found: found.encode('ab é'), tmp_path)


GGUF = {
  'model': 'gpt2',
  'pre': 'smollm',
  'tokens': ['a', 'b', 'ab', '<s>'],
  'token_type': [1, 1, 1, 3],
  'scores': [0.0, -1.0, -2.0, 0.0],
  'merges': ['a b'],
  'bos_token_id': 3,
  'eos_token_id': 3,
  'add_bos_token': True,
}


@pytest.mark.parametrize('count', COUNTS)
def test_the_tokenizer_of_a_gguf_file(count, monkeypatch):
  for seed, rng in fuzzing.seeds(count):
    kind = 'llama' if seed % 2 else 'gpt2'
    fields = fuzzing.changed(GGUF | {'model': kind}, rng)
    if not isinstance(fields, dict):
      continue
    file = types.SimpleNamespace(path='folder/m.gguf')
    monkeypatch.setattr(tokenizer_module, 'open_gguf', lambda path, f=file: f)

    def field(file, key, default=None, fields=fields):
      found = fields.get(key.rpartition('ggml.')[2], default)
      if found is None:
        raise ValueError(f'{file.path} has no metadata key {key}')
      return found

    monkeypatch.setattr(tokenizer_module, 'field', field)

    def read():
      return Tokenizer.from_gguf('folder/m.gguf').encode('ab <s>')

    fuzzing.outcome(read, 'folder/m.gguf')
