"""CLIP's tokenizer from vocab.json and merges.txt, against transformers."""

import importlib.util
import json

import pytest

from lora_opt.data.tokenizer_folder import open_tokenizer

MERGES = [
  ('c', 'a'),
  ('ca', 't</w>'),
  ('1', '2</w>'),
  ('r', 'e'),
  ('re', 'd</w>'),
]
BOS, EOS = '<|startoftext|>', '<|endoftext|>'
TEXTS = [
  'a red cat',
  'A  RED\tCAT, 12!',
  "It's the cats' re-red",
  'Ünïcode é 猫 🐱',
  f'cat{EOS}red',
  '',
]


def pieces() -> list[str]:
  """A piece for each byte, alone and at the end of a word, and the merges."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [byte for byte in range(256) if byte not in printable]
  letters = [chr(b) for b in printable]
  letters += [chr(256 + i) for i in range(len(hidden))]
  ends = [f'{letter}</w>' for letter in letters]
  return [*letters, *ends, *map(''.join, MERGES), BOS, EOS]


@pytest.fixture
def folder(tmp_path):
  vocab = {piece: number for number, piece in enumerate(pieces())}
  (tmp_path / 'vocab.json').write_text(json.dumps(vocab))
  lines = ['#version: 0.2', *map(' '.join, MERGES)]
  (tmp_path / 'merges.txt').write_text('\n'.join(lines) + '\n')
  return tmp_path


def test_words_are_lower_case_and_end_with_a_mark(folder):
  tokenizer, known = open_tokenizer(folder), pieces()
  found = [known[i] for i in tokenizer.encode('A  Red CAT, 12')]
  assert found == ['a</w>', 'red</w>', 'cat</w>', ',</w>', '1</w>', '2</w>']
  assert tokenizer.decode(tokenizer.encode('A Red  cat')) == 'a red cat'
  ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
  assert [known[i] for i in ids] == [BOS, EOS, EOS]


def test_the_padding_of_stable_diffusion_2_is_read(folder):
  settings = {'pad_token': '!', 'bos_token': BOS, 'eos_token': EOS}
  (folder / 'special_tokens_map.json').write_text(json.dumps(settings))
  tokenizer = open_tokenizer(folder)
  assert tokenizer.pad_id == pieces().index('!')
  assert tokenizer.eos_id == pieces().index(EOS)


def test_a_vocabulary_without_an_end_is_refused(folder):
  vocab = json.loads((folder / 'vocab.json').read_text())
  del vocab[EOS]
  (folder / 'vocab.json').write_text(json.dumps(vocab))
  with pytest.raises(ValueError, match=r'vocab\.json has no <\|endoftext\|>'):
    open_tokenizer(folder)


if importlib.util.find_spec('transformers'):

  @pytest.mark.filterwarnings('ignore')  # of transformers
  @pytest.mark.parametrize('text', TEXTS)
  def test_ids_are_those_of_transformers(folder, text):
    import transformers

    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = open_tokenizer(folder)
    assert [ours.bos_id, *ours.encode(text), ours.eos_id] == theirs(text)[
      'input_ids'
    ]
