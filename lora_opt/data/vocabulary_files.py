"""Tokenizers from vocabularies, for folders without a tokenizer.json."""

import json
import pathlib

import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from lora_opt.data.tokenizer import Tokenizer, read_settings


def from_wordpiece(folder: pathlib.Path) -> Tokenizer:
  """BERT's: vocab.txt, one piece a line.

  Raises:
    ValueError: If the vocabulary lacks one of BERT's special tokens.
  """
  file = folder / 'vocab.txt'
  pieces = _lines(file)
  vocab = {piece: number for number, piece in enumerate(pieces)}
  special = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
  _check(file, vocab, special)
  core = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
  settings = read_settings(folder)
  core.normalizer = normalizers.BertNormalizer(
    lowercase=settings.get('do_lower_case', True),
    strip_accents=settings.get('strip_accents'),
    handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
  )
  core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  core.decoder = decoders.WordPiece()
  core.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]',
    pair='[CLS] $A [SEP] $B:1 [SEP]:1',
    special_tokens=[(token, vocab[token]) for token in ('[CLS]', '[SEP]')],
  )
  core.add_special_tokens(list(special))
  return Tokenizer(core, pad_id=vocab['[PAD]'])


def from_byte_pairs(folder: pathlib.Path) -> Tokenizer:
  """RoBERTa's and GPT-2's: vocab.json and merges.txt, over bytes.

  Raises:
    ValueError: If a file is damaged.
  """
  file = folder / 'vocab.json'
  try:
    vocab = json.loads(file.read_text(encoding='utf-8'))
    merges = [
      tuple(line.split(' '))
      for line in _lines(folder / 'merges.txt')
      if line and not line.startswith('#version')
    ]
    core = tokenizers.Tokenizer(models.BPE(vocab, merges))
  except Exception as error:  # the Rust side raises plain Exception
    raise ValueError(f'{file} and merges.txt do not fit: {error}') from error
  core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = decoders.ByteLevel()
  known = ('<s>', '<pad>', '</s>', '<unk>', '<mask>', '<|endoftext|>')
  core.add_special_tokens([token for token in known if token in vocab])
  if '<s>' not in vocab:
    end = vocab.get('<|endoftext|>')
    return Tokenizer(core, bos_id=end, eos_id=end)
  _check(file, vocab, known[:4])
  core.post_processor = processors.RobertaProcessing(
    ('</s>', vocab['</s>']),
    ('<s>', vocab['<s>']),
    add_prefix_space=False,
  )
  return Tokenizer(core, vocab['<s>'], vocab['</s>'], vocab['<pad>'])


def _lines(file: pathlib.Path) -> list[str]:
  """Not by splitlines(): pieces may hold other characters that it splits at."""
  return file.read_text(encoding='utf-8').removesuffix('\n').split('\n')


def _check(file, vocab, special) -> None:
  if missing := [token for token in special if token not in vocab]:
    raise ValueError(f'{file} has no {", ".join(missing)}')
