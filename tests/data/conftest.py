"""A tokenizer small enough to check by hand."""

import importlib.util
import re
import warnings

import pytest

from tests.data import raw_files

# Compared with live where torch is installed.
collect_ignore_glob = (
  [] if importlib.util.find_spec('torch') else ['*_torch_test.py']
)


class ToyTokenizer:
  """One id a character, except for the tokens listed here."""

  tokens = (
    '<bos>',
    '<eos>',
    '<end>',
    '<user>',
    '<assistant>',
    '<system>',
    ': b',
  )
  chat_template = 'toy'
  bos_id, eos_id, pad_id, add_bos = 0, 1, None, False
  vocab_size = 256
  special_ids = frozenset(range(6))

  def encode(self, text):
    pattern = '|'.join([*map(re.escape, self.tokens), '(?s:.)'])
    return [self._id(piece) for piece in re.findall(pattern, text)]

  def _id(self, piece):
    if piece in self.tokens:
      return self.tokens.index(piece)
    return ord(piece)

  def decode(self, ids):
    return ''.join(chr(i) for i in ids if i >= len(self.tokens))

  def show(self, ids):
    """The text of the ids, special tokens written out."""
    size = len(self.tokens)
    return ''.join(self.tokens[i] if i < size else chr(i) for i in ids)

  def apply_chats(self, conversations, *, marked=False):
    del marked
    return [self.apply_chat(*one) for one in conversations]

  def apply_chat(self, messages, add_generation_prompt=True):
    turns = [f'<{m["role"]}>{m["content"]}<end>\n' for m in messages]
    if messages[0]['role'] != 'system':
      turns.insert(0, '<system>Be kind<end>\n')
    return ''.join(turns) + '<assistant>' * add_generation_prompt


@pytest.fixture
def toy():
  return ToyTokenizer()


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
  """A folder with every data set, prepared from two made rows of each."""
  folder = tmp_path_factory.mktemp('prepared')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from lora_opt.data.prepare.builder import prepare

    for name in raw_files.RAW:
      raw = raw_files.write(name, tmp_path_factory.mktemp('raw') / name)
      prepare(name, raw, folder)
  return folder
