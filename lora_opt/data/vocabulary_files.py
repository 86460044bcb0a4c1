"""Makes tokenizers from vocabulary files, if there is no tokenizer.json."""

import pathlib

import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_settings import Settings, read_settings
from lora_opt.reading import values
from lora_opt.reading.files import read_text
from lora_opt.reading.json_text import read_json

_CLIP_BOS, _CLIP_EOS = '<|startoftext|>', '<|endoftext|>'
# Special tokens, English endings, words, single digits, and other symbols.
_CLIP_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
  r'[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+'
)


def from_wordpiece(folder: pathlib.Path) -> Tokenizer:
  """Makes BERT's tokenizer from vocab.txt, which has one piece per line.

  Raises:
    ValueError: If the vocabulary lacks one of BERT's special tokens.
  """
  file = folder / 'vocab.txt'
  settings = read_settings(folder)
  vocab = {piece: number for number, piece in enumerate(_lines(file))}
  special = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
  _check(file, vocab, special)
  core = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
  core.normalizer = normalizers.BertNormalizer(
    lowercase=settings.boolean('do_lower_case', True),
    strip_accents=settings.boolean('strip_accents'),
    handle_chinese_chars=settings.boolean('tokenize_chinese_chars', True),
  )
  core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  core.decoder = decoders.WordPiece()
  core.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]',
    pair='[CLS] $A [SEP] $B:1 [SEP]:1',
    special_tokens=[(token, vocab[token]) for token in ('[CLS]', '[SEP]')],
  )
  core.add_special_tokens(list(special))
  return _named(core, settings, pad='[PAD]')


def from_byte_pairs(folder: pathlib.Path) -> Tokenizer:
  """Makes the byte-level tokenizer of RoBERTa, GPT-2 or CLIP.

  Reads vocab.json and merges.txt.

  Raises:
    ValueError: If a file is damaged.
  """
  file, merges_file = folder / 'vocab.json', folder / 'merges.txt'
  settings = read_settings(folder)
  vocab = {
    piece: values.integer(number, f'{file}: {values.shown(piece)}', 0, 2**31)
    for piece, number in read_json(file).items()
  }
  merges = [
    _merge(line, f'{merges_file}, line {number}')
    for number, line in enumerate(_lines(merges_file), 1)
    if line and not line.startswith('#version')
  ]
  is_clip = _CLIP_BOS in vocab
  suffix = {'end_of_word_suffix': '</w>'} if is_clip else {}
  try:
    core = tokenizers.Tokenizer(models.BPE(vocab, merges, **suffix))
  except Exception as error:  # the Rust side raises plain Exception
    raise ValueError(
      f'{file} and {merges_file.name} do not fit: {values.one_line(str(error))}'
    ) from error
  if is_clip:
    _check(file, vocab, (_CLIP_EOS,))
    return _clip(core, settings)
  core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = decoders.ByteLevel()
  known = ('<s>', '<pad>', '</s>', '<unk>', '<mask>', '<|endoftext|>')
  core.add_special_tokens([token for token in known if token in vocab])
  if '<s>' not in vocab:
    return _named(core, settings, bos='<|endoftext|>', eos='<|endoftext|>')
  _check(file, vocab, known[:4])
  core.post_processor = processors.RobertaProcessing(
    ('</s>', vocab['</s>']),
    ('<s>', vocab['<s>']),
    add_prefix_space=False,
  )
  return _named(core, settings, bos='<s>', eos='</s>', pad='<pad>')


def _clip(core: tokenizers.Tokenizer, settings: Settings) -> Tokenizer:
  """Makes CLIP's tokenizer: in lower case, with a mark at the end of words.

  Args:
    core: The tokenizer with only the pieces.
    settings: The settings from the files beside the vocabulary.
  """
  split = pre_tokenizers.Split(
    tokenizers.Regex(_CLIP_WORDS), behavior='removed', invert=True
  )
  core.normalizer = normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(tokenizers.Regex(r'\s+'), ' '),
      normalizers.Lowercase(),
    ]
  )
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  core.decoder = decoders.Sequence(
    [
      decoders.ByteLevel(),
      decoders.Replace('</w>', ' '),
      decoders.Strip(' ', 0, 1),
    ]
  )
  core.add_special_tokens([_CLIP_BOS, _CLIP_EOS])
  core.post_processor = processors.RobertaProcessing(
    (_CLIP_EOS, core.token_to_id(_CLIP_EOS)),
    (_CLIP_BOS, core.token_to_id(_CLIP_BOS)),
    trim_offsets=False,
    add_prefix_space=False,
  )
  return _named(core, settings, bos=_CLIP_BOS, eos=_CLIP_EOS, pad=_CLIP_EOS)


def _named(core, settings: Settings, **defaults: str) -> Tokenizer:
  """The tokenizer, with these special tokens if no file names others."""
  missing = {n: t for n, t in defaults.items() if n not in settings.tokens}
  settings = settings._replace(defaults=settings.defaults | missing)
  return Tokenizer.with_settings(core, settings)


def _merge(line: str, place: str) -> tuple[str, str]:
  """Reads a merge: two pieces with a space between them."""
  parts = line.split(' ')
  if len(parts) != 2:
    raise ValueError(
      f'{place}: expected two pieces with a space between them, found '
      f'{values.shown(line)}'
    )
  return parts[0], parts[1]


def _lines(file: pathlib.Path) -> list[str]:
  """Splits at line feeds alone; splitlines() would split some pieces too."""
  return read_text(file).removesuffix('\n').split('\n')


def _check(file, vocab, special) -> None:
  if missing := [token for token in special if token not in vocab]:
    raise ValueError(f'{file} has no {", ".join(missing)}')
