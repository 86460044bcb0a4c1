"""Text to token ids and back: a thin wrapper around `tokenizers`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from absl import logging
from tokenizers import (
  AddedToken,
  models,
  pre_tokenizers,
  processors,
)

from lora_opt.data import encoding
from lora_opt.data.chat_template import ChatTemplate, Message
from lora_opt.data.gguf_file import GGUFFile, field, open_gguf
from lora_opt.data.gguf_tokenizer import byte_level_core, gguf_core
from lora_opt.data.stops import Stops, stops_of
from lora_opt.data.tokenizer_file import guarded, read_tokenizer
from lora_opt.data.tokenizer_settings import Settings, read_settings
from lora_opt.data.turns import cut_of
from lora_opt.reading.values import boolean, integer, shown, text

BYTE_LEVEL_CHAT = (
  '{% for message in messages %}<{{ message.role }}>{{ message.content }}<eos>'
  '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)


class TextIds(NamedTuple):
  """One text or a pair of texts, with the special tokens around them."""

  ids: list[int]
  types: list[int]  # token types from the template: 0, and 1 in a second text
  texts: list[int | None]  # text a token belongs to; None for special tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Converts text to token ids, and knows a model's special tokens.

  Attributes:
    core: The `tokenizers.Tokenizer`.
    bos_id: Token that opens a text, or None.
    eos_id: Token that ends a text, or None.
    pad_id: Token that fills up a batch, or None.
    chat_template: Jinja template of a conversation, or None.
    add_bos: Whether the model was trained with bos_id in front of every text.
      `encode` never adds it; `opened` does.
    end_ids: Tokens that end a text besides eos_id.
    other_tokens: Further special tokens by name (unk, sep, cls, mask), which a
      chat template may use.
    template_place: Where the chat template comes from, or why there is none.
    place: Where the tokenizer comes from, for messages.

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
  end_ids: tuple[int, ...] = ()
  other_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  template_place: str = 'the chat template'
  place: str = 'the tokenizer'

  @classmethod
  def from_gguf(cls, source: str | os.PathLike | GGUFFile) -> Tokenizer:
    """Rebuilds the tokenizer that a GGUF file describes.

    Supports byte-level BPE (Llama 3, SmolLM2) and SentencePiece BPE (Llama 2,
    Gemma).

    Args:
      source: The .gguf file, or the result of `open_gguf` for it.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged or its tokenizer is of an unsupported kind.
    """
    opened = isinstance(source, GGUFFile)
    reader = source if opened else open_gguf(source)
    place = str(reader.path)

    def get(key, default=None):
      return field(reader, f'tokenizer.ggml.{key}', default)

    try:
      found = cls._of_gguf(get, field(reader, 'tokenizer.chat_template', ''))
    except ValueError as error:
      if place in str(error):
        raise
      raise ValueError(f'{place}: {error}') from error
    return dataclasses.replace(
      found,
      place=place,
      template_place=f'{place}: tokenizer.chat_template',
    )

  @classmethod
  def _of_gguf(cls, get, template: Any) -> Tokenizer:
    core = gguf_core(get)
    size = core.get_vocab_size()
    ids = [
      integer(get(f'{name}_token_id', -1), f'{name}_token_id', -1)
      for name in ('bos', 'eos', 'padding')
    ]
    for token_id in ids:
      # For no token, llama.cpp writes the largest 32-bit number.
      if size <= token_id < 2**32 - 1:
        raise ValueError(f'a special token has id {token_id} of {size}')
    bos, eos, pad = (i if 0 <= i < size else None for i in ids)
    # The default is llama.cpp's.
    default = get('model') == 'llama' or get('pre', '') == 'llama-bpe'
    add_bos = boolean(get('add_bos_token', default), 'add_bos_token')
    add_bos = add_bos and bos is not None
    if add_bos:
      core.post_processor = _opened_by(core.id_to_token(bos), bos)
    template = text(template, 'tokenizer.chat_template') or None
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
    core = read_tokenizer(folder / 'tokenizer.json')
    return cls.with_settings(core, read_settings(folder))

  @classmethod
  def with_settings(
    cls, core: tokenizers.Tokenizer, settings: Settings
  ) -> Tokenizer:
    """Makes a tokenizer with the settings from the files beside it.

    Args:
      core: The `tokenizers.Tokenizer`.
      settings: The settings from these files.

    Raises:
      ValueError: The settings name a special token that `core` does not have.
    """
    _add_tokens(core, settings)
    ids = {
      name: _special_id(core, settings, name) for name in ('bos', 'eos', 'pad')
    }
    said = settings.boolean('add_bos_token')
    return cls(
      core,
      ids['bos'],
      ids['eos'],
      ids['pad'],
      settings.template.text,
      _adds_bos(core, ids['bos'], said),
      settings.end_ids,
      {n: t for n, t in settings.tokens.items() if n not in ids},
      settings.template.place,
      str(settings.file.parent),
    )

  @classmethod
  def byte_level(cls) -> Tokenizer:
    """One token per byte, then <bos>, <eos>, <user>, ...; needs no file."""
    bpe = models.BPE(vocab=_byte_vocabulary(), merges=[])
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core = byte_level_core(bpe, (split,))
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
    for name, token in self.other_tokens.items():
      settings[f'{name}_token'] = token
    if self.chat_template is not None:
      settings['chat_template'] = self.chat_template
    if self.add_bos != _adds_bos(self.core, self.bos_id, None):
      settings['add_bos_token'] = self.add_bos
    settings['tokenizer_class'] = 'PreTrainedTokenizerFast'
    (folder / 'tokenizer_config.json').write_text(
      json.dumps(settings, indent=2) + '\n', encoding='utf-8'
    )

  def without_tokens_from(self, size: int) -> Tokenizer:
    """Removes added tokens whose ids have no embedding in a model.

    An example is Gemma 3's image token, in the models that read only text.

    Args:
      size: Number of ids that the model knows.

    Returns:
      The tokenizer, which treats these tokens as ordinary text. It is unchanged
      if it would still not fit, or if one of them is the token that opens, ends
      or pads texts.

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
  def largest_id(self) -> int:
    """The largest id of a token; some ids below it may be unused."""
    return max(self.core.get_vocab().values(), default=-1)

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of vocabulary and merges, in hexadecimal."""
    vocabulary = sorted(self.core.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(self.core.to_str())['model'].get('merges')
    return hashlib.sha256(json.dumps([vocabulary, merges]).encode()).hexdigest()

  @functools.cached_property
  def rules_digest(self) -> str:
    """SHA-256 of the rules that normalize, split and combine texts."""
    whole = json.loads(self.core.to_str())
    parts = 'normalizer', 'pre_tokenizer', 'post_processor', 'added_tokens'
    rules = json.dumps([whole.get(part) for part in parts])
    return hashlib.sha256(rules.encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text; special tokens in it are recognized, none are added."""
    return guarded(
      self.place, self.core.encode, text, add_special_tokens=False
    ).ids

  def offsets(self, text: str) -> list[tuple[int, int]]:
    """Where the tokens of `encode` begin and end in a text, in characters.

    >>> Tokenizer.byte_level().offsets('Hi<eos>')
    [(0, 1), (1, 2), (2, 7)]
    """
    return guarded(
      self.place, self.core.encode, text, add_special_tokens=False
    ).offsets

  def encode_texts(self, text: str, pair: str | None = None) -> TextIds:
    """Ids of one or two texts, combined by the tokenizer's own template.

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
    encoded = guarded(self.place, self.core.encode, text, pair)
    return TextIds(encoded.ids, encoded.type_ids, encoded.sequence_ids)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of the ids, without the special tokens."""
    return guarded(
      self.place, self.core.decode, list(ids), skip_special_tokens=True
    )

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """The ids of the added tokens that are not text."""
    added = self.core.get_added_tokens_decoder().items()
    return frozenset(token_id for token_id, token in added if token.special)

  def opened(self, ids: Sequence[int]) -> list[int]:
    """Prepends the token that opens texts, if there is one and it is missing.

    >>> opening = dataclasses.replace(Tokenizer.byte_level(), add_bos=True)
    >>> opening.opened([72]), opening.opened([256, 72])
    ([256, 72], [256, 72])
    """
    return encoding.opened(self, ids)

  def opening(self, *, chat: bool) -> list[int]:
    """The ids that every text begins with, or every one-turn conversation."""
    if chat:
      return self.encode(cut_of(self).opening)
    return [self.bos_id] if self.add_bos else []

  def stops(self, *, chat: bool, system: str | None = None) -> Stops:
    """What ends an answer; see `lora_opt.data.stops.stops_of`."""
    return stops_of(self, chat=chat, system=system)

  def apply_chat(
    self, messages: Sequence[Message], add_generation_prompt: bool = True
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
    return self.apply_chats([(messages, add_generation_prompt)])[0]

  def apply_chats(
    self,
    conversations: Sequence[tuple[Any, ...]],
    *,
    marked: bool = False,
  ) -> list[str]:
    """Renders conversations, as `ChatTemplate.render` does."""
    named = {'bos': self.bos_id, 'eos': self.eos_id, 'pad': self.pad_id}
    tokens = {
      name: self.core.id_to_token(token_id)
      for name, token_id in named.items()
      if token_id is not None
    }
    template = ChatTemplate(self.chat_template, self.template_place)
    return template.render(
      [([*messages], *others) for messages, *others in conversations],
      {f'{n}_token': t for n, t in ({**self.other_tokens, **tokens}).items()},
      marked=marked,
    )


def _byte_vocabulary() -> dict[str, int]:
  """Maps GPT-2's printable stand-in for each byte to the value of the byte."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  stand_ins = {byte: chr(byte) for byte in printable}
  stand_ins |= {byte: chr(256 + i) for i, byte in enumerate(others)}
  return {stand_ins[byte]: byte for byte in range(256)}


def _adds_bos(core, bos_id: int | None, said: bool | None) -> bool:
  """Whether texts open with bos_id: by the settings, or else the template."""
  if bos_id is None:
    return False
  return core.encode('').ids[:1] == [bos_id] if said is None else said


def _opened_by(token: str, token_id: int) -> processors.TemplateProcessing:
  """A template that puts a token before every text."""
  return processors.TemplateProcessing(
    single=f'{token} $A',
    pair=f'{token} $A {token}:1 $B:1',
    special_tokens=[(token, token_id)],
  )


def _add_tokens(core: tokenizers.Tokenizer, settings: Settings) -> None:
  """Adds the tokens that the settings of a folder add to its tokenizer."""
  for token, (number, special) in sorted(
    settings.added.items(), key=lambda item: item[1]
  ):
    known = core.token_to_id(token)
    if known is None:
      core.add_tokens([AddedToken(token, special=special, normalized=False)])
      known = core.token_to_id(token)
    if known != number:
      logging.warning(
        '%s: token %r is said to have id %d; the vocabulary has it as %d',
        settings.file,
        token,
        number,
        known,
      )


def _special_id(core, settings: Settings, name: str) -> int | None:
  if name not in settings.tokens:
    # The default of the tokenizer's class, if the vocabulary has it.
    return core.token_to_id(settings.defaults.get(name, ''))
  token = settings.tokens[name]
  token_id = core.token_to_id(token)
  if token_id is None:
    raise ValueError(
      f'{settings.file} names {shown(token)} as {name}_token, which the '
      'vocabulary does not have: name one that it has, or null for none'
    )
  return token_id
