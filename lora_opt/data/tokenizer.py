"""Text to token ids and back: a thin wrapper around `tokenizers`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import gguf
import tokenizers
from jinja2 import sandbox
from tokenizers import decoders, models, pre_tokenizers, processors

from lora_opt.data.gguf_file import field, open_gguf
from lora_opt.data.sentencepiece import (
  CONTROL,
  USER_DEFINED,
  sentencepiece_core,
)

LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)

# GGUF names the way a text is split before the merges (tokenizer.ggml.pre).
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

BYTE_LEVEL_CHAT = (
  '{% for message in messages %}<{{ message.role }}>{{ message.content }}<eos>'
  '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)


class TextIds(NamedTuple):
  """One text or a pair of texts, with the special tokens around them."""

  ids: list[int]
  types: list[int]  # the types the template gives: 0, and 1 in a second text
  texts: list[int | None]  # which text a token is of; None for special ones


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Token ids of a text, and what else a model's vocabulary fixes.

  Attributes:
    core: The `tokenizers.Tokenizer`.
    bos_id: Token that opens a text, or None.
    eos_id: Token that ends one, or None.
    pad_id: Token that fills up a batch, or None.
    chat_template: Jinja template of a conversation, or None.
    add_bos: Whether the model was trained with bos_id in front of every text.
      `encode` adds it to none; `lora_opt.data.encoding` does.

  >>> tokenizer = Tokenizer.byte_level()
  >>> tokenizer.encode('Hi<eos>')
  [72, 105, 257]
  >>> tokenizer.decode([72, 105, 257])
  'Hi'
  """

  core: tokenizers.Tokenizer
  bos_id: int | None = None
  eos_id: int | None = None
  pad_id: int | None = None
  chat_template: str | None = None
  add_bos: bool = False

  @classmethod
  def from_gguf(cls, source: str | os.PathLike | gguf.GGUFReader) -> Tokenizer:
    """Rebuilds the tokenizer that a GGUF file describes.

    Byte-level BPE (Llama 3, SmolLM2) and SentencePiece BPE (Llama 2, Gemma).

    Args:
      source: The .gguf file, or a reader that has it open.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged or its tokenizer of another kind.
    """
    opened = isinstance(source, gguf.GGUFReader)
    reader = source if opened else open_gguf(source)

    def get(key, default=None):
      return field(reader, f'tokenizer.ggml.{key}', default)

    core = _gguf_core(get)
    ids = [get(f'{name}_token_id', -1) for name in ('bos', 'eos', 'padding')]
    bos, eos, pad = (None if i < 0 else i for i in ids)
    # The default is llama.cpp's.
    default = get('model') == 'llama' or get('pre', '') == 'llama-bpe'
    add_bos = bos is not None and bool(get('add_bos_token', default))
    if add_bos:
      core.post_processor = _opened_by(core.id_to_token(bos), bos)
    template = field(reader, 'tokenizer.chat_template', '') or None
    return cls(core, bos, eos, pad, template, add_bos)

  @classmethod
  def from_folder(cls, path: str | os.PathLike) -> Tokenizer:
    """Reads tokenizer.json and, if present, tokenizer_config.json.

    Args:
      path: The folder.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: If there is no tokenizer.json.
      ValueError: If a file is damaged or names an unknown special token.
    """
    folder = pathlib.Path(path)
    file = folder / 'tokenizer.json'
    if not file.is_file():
      raise FileNotFoundError(f'no tokenizer.json in {folder}')
    try:
      core = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises plain Exception
      raise ValueError(f'{file} is not a tokenizer: {error}') from error
    # Ids are to be what was encoded, not cut or filled to a stored length.
    core.no_truncation()
    core.no_padding()
    settings = read_settings(folder)
    ids = [
      _special_id(core, settings.get(f'{name}_token'), folder)
      for name in ('bos', 'eos', 'pad')
    ]
    template = settings.get('chat_template')
    if template is None and (folder / 'chat_template.jinja').is_file():
      template = (folder / 'chat_template.jinja').read_text(encoding='utf-8')
    return cls(core, *ids, template, _adds_bos(core, ids[0], settings))

  @classmethod
  def byte_level(cls) -> Tokenizer:
    """One token a byte, then <bos>, <eos>, <user>, ...: needs no file."""
    bpe = models.BPE(vocab=_byte_vocabulary(), merges=[])
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core = _byte_level_core(bpe, (split,))
    core.add_special_tokens(
      ['<bos>', '<eos>', '<pad>', '<system>', '<user>', '<assistant>']
    )
    core.post_processor = processors.TemplateProcessing(
      single='<bos> $A <eos>',
      pair='<bos> $A <eos> $B:1 <eos>:1',
      special_tokens=[('<bos>', 256), ('<eos>', 257)],
    )
    return cls(core, *(256, 257, 258), BYTE_LEVEL_CHAT)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the files that `from_folder` and transformers read."""
    folder = pathlib.Path(path)
    self.core.save(str(folder / 'tokenizer.json'))
    settings = {
      f'{name}_token': self.core.id_to_token(token_id)
      for name, token_id in (
        ('bos', self.bos_id),
        ('eos', self.eos_id),
        ('pad', self.pad_id),
      )
      if token_id is not None
    }
    if self.chat_template is not None:
      settings['chat_template'] = self.chat_template
    if self.add_bos != _adds_bos(self.core, self.bos_id, {}):
      settings['add_bos_token'] = self.add_bos
    settings['tokenizer_class'] = 'PreTrainedTokenizerFast'
    (folder / 'tokenizer_config.json').write_text(
      json.dumps(settings, indent=2) + '\n', encoding='utf-8'
    )

  def without_tokens_from(self, size: int) -> Tokenizer:
    """Takes out added tokens of ids for which a model has no embedding.

    Such as Gemma 3's of an image, in the models that read text alone.

    Args:
      size: Number of ids that the model knows.

    Returns:
      The tokenizer, to which they are text like any other; as it is where that
      does not make it fit, or one of them opens, ends or fills up texts.

    >>> tokenizer = Tokenizer.byte_level()
    >>> smaller = tokenizer.without_tokens_from(261)
    >>> [len(t.encode('<assistant>')) for t in (tokenizer, smaller)]
    [1, 11]
    """
    beyond = {i for i in self.core.get_added_tokens_decoder() if i >= size}
    needed = beyond & {self.bos_id, self.eos_id, self.pad_id}
    if not beyond or needed or self.vocab_size - len(beyond) > size:
      return self
    content = json.loads(self.core.to_str())
    content['added_tokens'] = [
      token for token in content['added_tokens'] if token['id'] < size
    ]
    core = tokenizers.Tokenizer.from_str(json.dumps(content))
    return dataclasses.replace(self, core=core)

  @property
  def vocab_size(self) -> int:
    """Number of tokens, special ones included."""
    return self.core.get_vocab_size()

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of vocabulary and merges, in hexadecimal."""
    vocabulary = sorted(self.core.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(self.core.to_str())['model'].get('merges')
    return hashlib.sha256(json.dumps([vocabulary, merges]).encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text; special tokens in it are recognized, none are added."""
    return self.core.encode(text, add_special_tokens=False).ids

  def encode_texts(self, text: str, pair: str | None = None) -> TextIds:
    """Ids of a text or of two, put together by the tokenizer's own template.

    Args:
      text: The text.
      pair: A second text that belongs to it, or None.

    Raises:
      ValueError: If the tokenizer has no template.

    >>> Tokenizer.byte_level().encode_texts('ab', 'c').ids
    [256, 97, 98, 257, 99, 257]
    """
    if not self.core.num_special_tokens_to_add(pair is not None):
      raise ValueError(
        'the tokenizer has no template for texts (post_processor in '
        'tokenizer.json): it is not one of an encoder'
      )
    encoded = self.core.encode(text, pair)
    return TextIds(encoded.ids, encoded.type_ids, encoded.sequence_ids)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids, without the special tokens."""
    return self.core.decode(list(ids), skip_special_tokens=True)

  def apply_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Renders a conversation with the chat template.

    Args:
      messages: Each with 'role' and 'content'.
      add_generation_prompt: Whether to open the assistant's turn at the end.

    Returns:
      The text, special tokens included.

    Raises:
      ValueError: If there is no chat template, or it refuses the messages.

    >>> message = {'role': 'user', 'content': 'Hi'}
    >>> Tokenizer.byte_level().apply_chat([message])
    '<user>Hi<eos><assistant>'
    """
    if self.chat_template is None:
      raise ValueError('the tokenizer has no chat template')

    def text(i):
      return '' if i is None else self.core.id_to_token(i)

    return _compile(self.chat_template).render(
      messages=list(messages),
      add_generation_prompt=add_generation_prompt,
      bos_token=text(self.bos_id),
      eos_token=text(self.eos_id),
      pad_token=text(self.pad_id),
    )


@functools.cache
def _compile(template: str):
  def refuse(message):
    raise ValueError(f'the chat template refuses the messages: {message}')

  # Templates come with weights from elsewhere, so they run in a sandbox.
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True
  )
  environment.globals['raise_exception'] = refuse
  return environment.from_string(template)


def _gguf_core(get) -> tokenizers.Tokenizer:
  """The tokenizer of a GGUF file; `get` reads its keys."""
  kind, split = get('model'), get('pre', 'gpt-2')
  tokens, types = get('tokens'), get('token_type')
  if kind != 'llama' and (kind != 'gpt2' or split not in PRE_TOKENIZERS):
    raise ValueError(
      f'GGUF tokenizer {kind!r} with pre-tokenizer {split!r} is not '
      f'supported; supported are llama, and gpt2 with '
      f'{", ".join(PRE_TOKENIZERS)}'
    )
  try:
    if kind == 'llama':
      prefix = get('add_space_prefix', True)
      return sentencepiece_core(tokens, get('scores'), types, prefix)
    bpe = models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(' ')) for merge in get('merges', [])],
      # Llama 3 takes a word that is a token whole, whatever the merges say.
      ignore_merges=split == 'llama-bpe',
    )
  except Exception as error:  # the Rust side raises plain Exception
    raise ValueError(f'damaged GGUF tokenizer: {error}') from error
  core = _byte_level_core(bpe, PRE_TOKENIZERS[split])
  pairs = list(zip(tokens, types, strict=True))
  core.add_special_tokens([t for t, kind in pairs if kind == CONTROL])
  core.add_tokens([t for t, kind in pairs if kind == USER_DEFINED])
  return core


def _byte_level_core(bpe, splits) -> tokenizers.Tokenizer:
  core = tokenizers.Tokenizer(bpe)
  core.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
  core.decoder = decoders.ByteLevel()
  return core


def _byte_vocabulary() -> dict[str, int]:
  """The printable stand-in of every byte, as GPT-2 chose them, by value."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  stand_ins = {byte: chr(byte) for byte in printable}
  stand_ins |= {byte: chr(256 + i) for i, byte in enumerate(others)}
  return {stand_ins[byte]: byte for byte in range(256)}


def read_settings(folder: pathlib.Path) -> dict:
  """The tokenizer_config.json of a folder; empty if there is none.

  Raises:
    ValueError: If it is not JSON.
  """
  file = folder / 'tokenizer_config.json'
  if not file.is_file():
    return {}
  try:
    return json.loads(file.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{file} is not JSON: {error}') from error


def _adds_bos(core, bos_id: int | None, settings: Mapping) -> bool:
  """Whether the settings say so or, where they do not, the template does."""
  if bos_id is None:
    return False
  said = settings.get('add_bos_token')
  return core.encode('').ids[:1] == [bos_id] if said is None else bool(said)


def _opened_by(token: str, token_id: int) -> processors.TemplateProcessing:
  """The template of texts that begin with a token."""
  return processors.TemplateProcessing(
    single=f'{token} $A',
    pair=f'{token} $A {token}:1 $B:1',
    special_tokens=[(token, token_id)],
  )


def _special_id(core, token, folder) -> int | None:
  if token is None:
    return None
  # Older files keep the whole description of the token.
  content = token['content'] if isinstance(token, dict) else token
  token_id = core.token_to_id(content)
  if token_id is None:
    raise ValueError(
      f'{folder}: tokenizer_config.json names {content!r}, which '
      'tokenizer.json does not have'
    )
  return token_id
