"""The tokenizer: rebuilt from GGUF, read from a folder, chat templates."""

import dataclasses
import json

import gguf
import pytest
from tokenizers import processors

from lora_opt.data.encoding import encode_completions
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.pretrained.smollm2 import smollm2_path

CHAT = [
  {'role': 'user', 'content': 'What is 12 plus 5?'},
  {'role': 'assistant', 'content': '17'},
]
TEXTS = (
  'The year 2024,  two spaces\n\nand a "quote": naïve café, 東京 🙂.',
  '<|im_start|>user\nHi<|im_end|>\n',
  ' leading and trailing ',
  '',
)


@pytest.fixture(scope='module', name='smollm2')
def _smollm2():
  return Tokenizer.from_gguf(smollm2_path())


@pytest.fixture(name='folder')
def _folder(tmp_path, smollm2):
  smollm2.core.save(str(tmp_path / 'tokenizer.json'))
  settings = {
    'bos_token': '<|im_start|>',
    'eos_token': {'content': '<|im_end|>', 'lstrip': False},
    'chat_template': smollm2.chat_template,
  }
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return tmp_path


def test_vocabulary_of_the_gguf_file(smollm2):
  assert smollm2.vocab_size == 49152
  assert (smollm2.bos_id, smollm2.eos_id, smollm2.pad_id) == (1, 2, 2)


@pytest.mark.parametrize('text', TEXTS)
def test_round_trip(smollm2, text):
  ids = smollm2.encode(text)
  specials = text.replace('<|im_start|>', '').replace('<|im_end|>', '')
  assert smollm2.decode(ids) == specials


def test_digits_are_single_tokens(smollm2):
  ids = smollm2.encode('2024')
  assert [smollm2.decode([i]) for i in ids] == ['2', '0', '2', '4']


def test_special_tokens_are_recognized_and_none_are_added(smollm2):
  assert smollm2.encode('<|im_start|>') == [1]
  assert smollm2.encode('') == []


def test_chat_template(smollm2):
  system = (
    '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained '
    'by Hugging Face<|im_end|>\n'
  )
  question = '<|im_start|>user\nWhat is 12 plus 5?<|im_end|>\n'
  turn = '<|im_start|>assistant\n'
  assert smollm2.apply_chat(CHAT[:1]) == system + question + turn
  assert (
    smollm2.apply_chat(CHAT, add_generation_prompt=False)
    == system + question + turn + '17<|im_end|>\n'
  )


def test_folder_gives_the_same_tokenizer(smollm2, folder):
  other = Tokenizer.from_folder(folder)
  assert [other.encode(t) for t in TEXTS] == [smollm2.encode(t) for t in TEXTS]
  assert (other.bos_id, other.eos_id, other.pad_id) == (1, 2, None)
  assert other.apply_chat(CHAT) == smollm2.apply_chat(CHAT)
  assert other.digest == smollm2.digest


def test_folder_may_keep_the_template_in_a_file(folder):
  (folder / 'tokenizer_config.json').unlink()
  (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}!')
  tokenizer = Tokenizer.from_folder(folder)
  assert tokenizer.eos_id is None
  assert tokenizer.apply_chat([{'role': 'user', 'content': 'Hi'}]) == 'Hi!'


@pytest.mark.parametrize(
  ('template', 'said', 'expected'),
  [
    (True, None, True),  # Llama 3
    (True, True, True),  # Gemma, Llama 2
    (False, True, True),  # Llama's first files
    (False, None, False),  # SmolLM2
    (True, False, False),
  ],
)
def test_folder_says_whether_texts_open_with_bos(
  tmp_path, template, said, expected
):
  byte_level = Tokenizer.byte_level()
  if not template:
    byte_level.core.post_processor = processors.ByteLevel()
  byte_level.save(tmp_path)
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  settings.pop('add_bos_token', None)
  if said is not None:
    settings['add_bos_token'] = said
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  tokenizer = Tokenizer.from_folder(tmp_path)
  assert tokenizer.add_bos == expected
  assert tokenizer.encode('Hi') == [72, 105]
  start = [tokenizer.bos_id] * expected
  prompt, _ = encode_completions(tokenizer, 'Q', ['A'], chat=False)
  assert prompt == [*start, 81]
  # And back: what was said is kept.
  tokenizer.save(tmp_path)
  assert Tokenizer.from_folder(tmp_path).add_bos == expected


@pytest.mark.parametrize(
  ('pre', 'said', 'expected'),
  [
    ('llama-bpe', None, True),
    ('smollm', None, False),
    ('smollm', True, True),
    ('llama-bpe', False, False),
  ],
)
def test_gguf_says_whether_texts_open_with_bos(tmp_path, pre, said, expected):
  path = tmp_path / 'm.gguf'
  write_tokenizer(path, pre=pre, add_bos=said)
  tokenizer = Tokenizer.from_gguf(path)
  assert tokenizer.add_bos == expected
  start = [tokenizer.bos_id] * expected
  assert tokenizer.core.encode('a').ids == [*start, tokenizer.encode('a')[0]]
  tokenizer.save(tmp_path)
  assert Tokenizer.from_folder(tmp_path).add_bos == expected


def write_tokenizer(path, pre, add_bos):
  """A GGUF file of no weights: the bytes and a token that opens a text."""
  vocab = Tokenizer.byte_level().core.get_vocab()
  tokens = sorted(vocab, key=vocab.get)[:257]
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types([1] * 256 + [3])
  writer.add_token_merges([])
  writer.add_bos_token_id(256)
  if add_bos is not None:
    writer.add_add_bos_token(add_bos)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_stored_truncation_and_padding_are_ignored(folder):
  tokenizer = Tokenizer.from_folder(folder)
  tokenizer.core.enable_truncation(2)
  tokenizer.core.enable_padding(length=9)
  tokenizer.core.save(str(folder / 'tokenizer.json'))
  ids = Tokenizer.from_folder(folder).encode('one two three four')
  assert len(ids) == 4


def test_digest_tells_vocabularies_apart(smollm2):
  assert smollm2.digest != Tokenizer.byte_level().digest
  assert Tokenizer.byte_level().digest == Tokenizer.byte_level().digest


def test_byte_level_is_the_utf8_bytes():
  tokenizer = Tokenizer.byte_level()
  text = 'A é 東 \n'
  assert tokenizer.encode(text) == list(text.encode())
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_runs_in_a_sandbox():
  hostile = dataclasses.replace(
    Tokenizer.byte_level(), chat_template='{{ messages.append(1) }}'
  )
  with pytest.raises(Exception, match='unsafe'):
    hostile.apply_chat(CHAT)


def test_chat_template_may_refuse():
  strict = dataclasses.replace(
    Tokenizer.byte_level(),
    chat_template='{{ raise_exception("no system message") }}',
  )
  with pytest.raises(ValueError, match=r'refuses.*: no system message'):
    strict.apply_chat(CHAT)


def test_chat_without_a_template():
  plain = dataclasses.replace(Tokenizer.byte_level(), chat_template=None)
  with pytest.raises(ValueError, match='no chat template'):
    plain.apply_chat(CHAT)


def test_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no tokenizer\.json in'):
    Tokenizer.from_folder(tmp_path)
  with pytest.raises(FileNotFoundError, match=r'no GGUF file at .*x\.gguf'):
    Tokenizer.from_gguf(tmp_path / 'x.gguf')


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
def test_broken_file_is_named(folder, name):
  (folder / name).write_text('{"')
  with pytest.raises(ValueError, match=name):
    Tokenizer.from_folder(folder)


def test_unknown_special_token_is_named(folder):
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "</s>"}')
  with pytest.raises(ValueError, match="names '</s>'"):
    Tokenizer.from_folder(folder)
