"""Tokenizers of encoders from folders without a tokenizer.json."""

import json
import shutil

import pytest
import sentencepiece

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer
from lora_opt.models.pretrained.minilm import minilm_folder


def test_wordpiece_equals_the_tokenizer_json_of_the_same_model(tmp_path):
  folder = minilm_folder()
  for name in ('vocab.txt', 'tokenizer_config.json'):
    shutil.copy(folder / name, tmp_path / name)
  ours, theirs = open_tokenizer(tmp_path), Tokenizer.from_folder(folder)
  assert ours.vocab_size == theirs.vocab_size
  for texts in (
    ('A plane is taking off.', 'An air plane .'),
    ("She was VERY naïve, wasn't she? 飛行機",),
    ('[MASK] and ##pieces,\tunaffable',),
  ):
    assert ours.encode_texts(*texts) == theirs.encode_texts(*texts)


def test_a_piece_may_be_a_separator_of_lines(tmp_path):
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '\u2028', 'a']
  (tmp_path / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  tokenizer = open_tokenizer(tmp_path)
  assert tokenizer.vocab_size == 7
  assert tokenizer.encode('a') == [6]


def test_byte_pairs_in_the_template_of_roberta(tmp_path):
  pieces = ['<s>', '<pad>', '</s>', '<unk>', 'a', 'b', 'Ġ', 'ab', 'Ġab']
  vocab = {piece: number for number, piece in enumerate(pieces)}
  (tmp_path / 'vocab.json').write_text(json.dumps(vocab))
  (tmp_path / 'merges.txt').write_text('#version: 0.2\na b\nĠ ab\n')
  tokenizer = open_tokenizer(tmp_path)
  assert tokenizer.encode_texts('ab ab').ids == [0, 7, 8, 2]
  pair = tokenizer.encode_texts('ab', 'b')
  assert pair.ids == [0, 7, 2, 2, 5, 2]
  assert set(pair.types) == {0}
  assert pair.texts == [None, 0, None, None, 1, None]
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 2, 1)


def test_damaged_vocabularies_are_named(tmp_path):
  (tmp_path / 'vocab.json').write_text('{"a": 0}')
  (tmp_path / 'merges.txt').write_text('a b\n')
  with pytest.raises(ValueError, match=r'vocab.json and merges.txt'):
    open_tokenizer(tmp_path)
  (tmp_path / 'merges.txt').unlink()
  (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\na\n')
  with pytest.raises(ValueError, match=r'vocab.txt has no \[CLS\], \[SEP\]'):
    open_tokenizer(tmp_path)


def test_sentencepiece_in_the_template_of_deberta(tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('the cat sat on the mat\n' * 20)
  sentencepiece.SentencePieceTrainer.train(
    input=str(text),
    model_prefix=str(tmp_path / 'spm'),
    vocab_size=24,
    pad_id=0,
    pad_piece='[PAD]',
    bos_id=1,
    bos_piece='[CLS]',
    eos_id=2,
    eos_piece='[SEP]',
    unk_id=3,
    unk_piece='[UNK]',
    hard_vocab_limit=False,
    minloglevel=2,
  )
  tokenizer = open_tokenizer(tmp_path)
  assert tokenizer.vocab_size == tokenizer.core.get_piece_size()
  first, second = tokenizer.encode('the cat'), tokenizer.encode('sat')
  pair = tokenizer.encode_texts('the cat', 'sat')
  assert pair.ids == [1, *first, 2, *second, 2]
  assert pair.types == [0] * (len(first) + 2) + [1] * (len(second) + 1)
  expected = [None] + [0] * len(first) + [None] + [1] * len(second) + [None]
  assert pair.texts == expected
