"""SentencePiece vocabularies: the order of joins, bytes, spaces."""

import io
import pathlib

import pytest
import sentencepiece

from lora_opt.data import packing
from lora_opt.data.sentencepiece import sentencepiece_core

BYTES = [f'<0x{value:02X}>' for value in range(256)]
WORDS = {
  '▁': -90,
  'a': -91,
  'b': -92,
  'c': -93,
  'ab': -5,
  'bc': -4,
  'abc': -3,
  '▁a': -2,
  '▁▁': -1,
}
SPECIAL = ['<unk>', '<bos>']
USER_DEFINED = ['<table> ']


def core(space_prefix):
  pieces = [*SPECIAL, *BYTES, *WORDS, *USER_DEFINED]
  scores = [0.0] * 258 + [float(s) for s in WORDS.values()] + [0.0]
  types = [2, 3] + [6] * 256 + [1] * len(WORDS) + [4]
  return sentencepiece_core(pieces, scores, types, space_prefix)


@pytest.mark.parametrize(
  ('text', 'tokens'),
  [
    # ▁a scores higher than abc, and is joined first; bc higher than ab.
    ('c abc', ['c', '▁a', 'bc']),
    ('cabc', ['c', 'abc']),
    ('c  a', ['c', '▁▁', 'a']),
    ('cé', ['c', '<0xC3>', '<0xA9>']),
    ('c<bos>a', ['c', '<bos>', 'a']),
    ('c<table> a', ['c', '<table> ', 'a']),
  ],
)
def test_pieces(text, tokens):
  found = core(False).encode(text, add_special_tokens=False).tokens
  assert found == tokens


def test_space_in_front():
  assert core(True).encode('a', add_special_tokens=False).tokens == ['▁a']


@pytest.mark.parametrize('space_prefix', [False, True])
@pytest.mark.parametrize('text', ['a  b\n', 'cé 東', ' a', 'abc'])
def test_text_comes_back(space_prefix, text):
  tokenizer = core(space_prefix)
  ids = tokenizer.encode(text, add_special_tokens=False).ids
  assert tokenizer.decode(ids) == text


@pytest.mark.parametrize('space_prefix', [False, True])
def test_pieces_are_those_of_the_library(space_prefix):
  lines = pathlib.Path(packing.__file__).read_text().splitlines()
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    model_type='bpe',
    vocab_size=450,
    byte_fallback=True,
    add_dummy_prefix=space_prefix,
    remove_extra_whitespaces=False,
    normalization_rule_name='identity',
    minloglevel=2,
  )
  theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  ids = range(theirs.get_piece_size())
  kinds = {2: theirs.is_unknown, 3: theirs.is_control, 6: theirs.is_byte}
  ours = sentencepiece_core(
    [theirs.id_to_piece(i) for i in ids],
    [theirs.get_score(i) for i in ids],
    [next((k for k, of in kinds.items() if of(i)), 1) for i in ids],
    space_prefix,
  )
  for line in [*lines, 'été 東京  two', ' x']:
    found = ours.encode(line, add_special_tokens=False).ids
    assert found == theirs.encode(line), line
