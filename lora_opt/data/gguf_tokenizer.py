"""The tokenizer in a GGUF file."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lora_opt.data.gguf_vocabulary import read_vocabulary
from lora_opt.data.sentencepiece import (
  CONTROL,
  USER_DEFINED,
  sentencepiece_core,
)
from lora_opt.data.tokenizer_file import guarded
from lora_opt.reading.values import boolean, shown, text

LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)

# How a text is split before the merges, by the name in tokenizer.ggml.pre.
PRE_TOKENIZERS = {
  'gpt-2': (pre_tokenizers.ByteLevel(add_prefix_space=False),),
  'smollm': (
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
  ),
  'llama-bpe': (
    pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), 'isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ),
}
_DAMAGED = 'damaged GGUF tokenizer: it'


def gguf_core(get) -> tokenizers.Tokenizer:
  """The tokenizer of a GGUF file.

  Args:
    get: Returns the value of a key of tokenizer.ggml, or its second argument
      if the key is missing.

  Raises:
    ValueError: The tokenizer is damaged, or of an unsupported kind.
  """
  kind = text(get('model'), 'tokenizer.ggml.model')
  split = text(get('pre', 'gpt-2'), 'tokenizer.ggml.pre')
  if kind != 'llama' and (kind != 'gpt2' or split not in PRE_TOKENIZERS):
    raise ValueError(
      f'tokenizer {shown(kind)} with pre-tokenizer {shown(split)} is not '
      f'supported; supported are llama, and gpt2 with '
      f'{", ".join(PRE_TOKENIZERS)}'
    )
  tokens, types, scores, merges = read_vocabulary(get, kind == 'llama')
  if kind == 'llama':
    prefix = boolean(get('add_space_prefix', True), 'add_space_prefix')
    return guarded(_DAMAGED, sentencepiece_core, tokens, scores, types, prefix)
  bpe = guarded(
    _DAMAGED,
    models.BPE,
    vocab={token: i for i, token in enumerate(tokens)},
    merges=merges,
    # Llama 3 keeps a word whole if it is a token, whatever the merges say.
    ignore_merges=split == 'llama-bpe',
  )
  core = byte_level_core(bpe, PRE_TOKENIZERS[split])
  pairs = list(zip(tokens, types, strict=True))
  core.add_special_tokens([t for t, kind in pairs if kind == CONTROL])
  core.add_tokens([t for t, kind in pairs if kind == USER_DEFINED])
  return core


def byte_level_core(bpe, splits) -> tokenizers.Tokenizer:
  """A byte-level BPE tokenizer that first splits texts by `splits`."""
  core = tokenizers.Tokenizer(bpe)
  core.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
  core.decoder = decoders.ByteLevel()
  return core
