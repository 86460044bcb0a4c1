"""SentencePiece models, trained here on a few lines, as T5 has them."""

import io
import json

import pytest
import sentencepiece

from lora_opt.data.sentencepiece_tokenizer import SentencePieceTokenizer
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer

LINES = [
  'the cat sat on the mat and the dog ran to the cat',
  'a dog and a cat read a book on the mat, one by one',
  'numbers such as 1, 2 and 3 come after the words of the book',
] * 20


def train(**settings):
  """The bytes of a spiece.model with T5's special ids."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES),
    model_writer=model,
    model_type='unigram',
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
    **settings,
  )
  return model.getvalue()


@pytest.fixture(scope='module')
def plain():
  return train(vocab_size=40)


@pytest.fixture(name='folder')
def _folder(tmp_path, plain):
  (tmp_path / 'spiece.model').write_bytes(plain)
  return tmp_path


def test_ids_are_those_of_the_library(folder, plain):
  reference = sentencepiece.SentencePieceProcessor(model_proto=plain)
  tokenizer = open_tokenizer(folder)
  for text in ('the cat', '  a   dog\n', 'ﬁve ½ mats', '', 'xyz?!'):
    assert tokenizer.encode(text) == reference.encode(text)
  text = 'the dog and the cat, 1 by 1'
  assert tokenizer.decode([*tokenizer.encode(text), 1, 0, 0]) == text


def test_special_tokens_are_those_of_t5(folder):
  tokenizer = open_tokenizer(folder)
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, None)
  assert tokenizer.vocab_size == 40 + 100
  ids = tokenizer.encode('the <extra_id_0> cat <extra_id_99></s>')
  assert ids[-2:] == [40, 1] and 139 in ids
  assert tokenizer.decode(ids) == 'the cat'


def test_the_number_of_sentinels(folder):
  settings = folder / 'tokenizer_config.json'
  settings.write_text(json.dumps({'extra_ids': 7}))
  assert open_tokenizer(folder).vocab_size == 47
  settings.unlink()
  # mT5 has them among its pieces.
  sentinels = ['▁<extra_id_1>', '▁<extra_id_0>']
  model = train(vocab_size=295, user_defined_symbols=sentinels, byte_fallback=1)
  core = sentencepiece.SentencePieceProcessor(model_proto=model)
  assert SentencePieceTokenizer(core).encode('é')[1:] == [
    core.piece_to_id(f'<0x{byte:02X}>') for byte in 'é'.encode()
  ]


def test_digest_tells_models_apart(folder):
  core = open_tokenizer(folder).core
  digests = [SentencePieceTokenizer(core, n).digest for n in (100, 100, 7)]
  assert digests[0] == digests[1] != digests[2]


def test_tokenizer_json_comes_first(folder):
  Tokenizer.byte_level().core.save(str(folder / 'tokenizer.json'))
  assert isinstance(open_tokenizer(folder), Tokenizer)


def test_there_is_no_chat(folder):
  with pytest.raises(ValueError, match='no chat template'):
    open_tokenizer(folder).apply_chat([{'role': 'user', 'content': 'Hi'}])


def test_missing_and_damaged_files_are_named(folder):
  file = folder / 'spiece.model'
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(ValueError, match=r'spiece\.model is not a SentencePiece'):
    open_tokenizer(folder)
  file.unlink()
  with pytest.raises(FileNotFoundError, match='no tokenizer.json in .* spiece'):
    open_tokenizer(folder)
  with pytest.raises(FileNotFoundError, match=r'no spiece\.model or '):
    SentencePieceTokenizer.from_folder(folder)
