"""Reads a tokenizer's settings from the files beside it, as transformers does.

tokenizer_config.json names the special tokens. If it does not, older folders
have special_tokens_map.json, and the class of the tokenizer has defaults.
generation_config.json may name several tokens that end a text.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_opt.data.chat_template import ChatTemplate, read_template
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

FILE = 'tokenizer_config.json'
NAMES = ('bos', 'eos', 'pad', 'unk', 'sep', 'cls', 'mask')
MOST_BYTES = 2**24

# For each class of transformers its bos, eos and pad, with '-' for none.
_DEFAULTS = {
  'Albert RemBert': '[CLS] [SEP] <pad>',
  'Barthez BigBird Blenderbot Camembert Funnel LayoutLMv3 LayoutXLM Luke MBart '
  'MarkupLM MLuke MPNet Nllb Nougat PLBart Roberta XGLM XLMRoberta': (
    '<s> </s> <pad>'
  ),
  'Bert ConvBert DistilBert Electra LayoutLMv2 MobileBert RoFormer Splinter': (
    '- - [PAD]'
  ),
  'CLIP': '<|startoftext|> <|endoftext|> <|endoftext|>',
  'CodeGen GPT2 Whisper': '<|endoftext|> <|endoftext|> -',
  'CodeLlama Llama': '<s> </s> -',
  'Cohere': '<BOS_TOKEN> <|END_OF_TURN_TOKEN|> <PAD>',
  'Deberta DebertaV2': '[CLS] [SEP] [PAD]',
  'GPTNeoX': '<|endoftext|> <|endoftext|> <|padding|>',
  'Gemma': '<bos> <eos> <pad>',
  'MBart50 Pegasus T5 Udop': '- </s> <pad>',
  'Qwen2': '- <|endoftext|> <|endoftext|>',
  'Reformer': '- </s> -',
  'XLNet': '<s> </s> <pad>',
}
_BY_CLASS = {
  f'{name}Tokenizer': dict(
    zip(('bos', 'eos', 'pad'), tokens.split(), strict=True)
  )
  for names, tokens in _DEFAULTS.items()
  for name in names.split()
}
# The classes of model types whose config.json does not name a class.
_BY_MODEL = {
  'albert': 'Albert',
  'bert': 'Bert',
  'deberta': 'Deberta',
  'deberta-v2': 'DebertaV2',
  'distilbert': 'DistilBert',
  'electra': 'Electra',
  'gemma': 'Gemma',
  'gemma2': 'Gemma',
  'gemma3': 'Gemma',
  'gemma3_text': 'Gemma',
  'gpt2': 'GPT2',
  'gpt_neox': 'GPTNeoX',
  'mpnet': 'MPNet',
  'mt5': 'T5',
  'qwen2': 'Qwen2',
  'qwen3': 'Qwen2',
  'roberta': 'Roberta',
  't5': 'T5',
  'xlm-roberta': 'XLMRoberta',
}


class Settings(NamedTuple):
  """The tokenizer settings of a folder.

  Attributes:
    file: The path of tokenizer_config.json, for messages.
    given: The content of that file.
    tokens: Special tokens by name, such as 'eos'; null or empty ones are left
      out.
    defaults: Special tokens of the class, for names that no file gives. They
      apply only if the vocabulary has them.
    end_ids: Tokens that end a text, besides 'eos'.
    added: Tokens that the folder adds to the vocabulary, with their ids and
      whether they are special.
    template: The chat template.
  """

  file: pathlib.Path
  given: Mapping[str, Any]
  tokens: Mapping[str, str]
  defaults: Mapping[str, str]
  end_ids: tuple[int, ...]
  added: Mapping[str, tuple[int, bool]]
  template: ChatTemplate

  def boolean(self, name: str, default: bool | None = None) -> bool | None:
    """A boolean of tokenizer_config.json; null counts as missing."""
    value = self.given.get(name)
    if value is None:
      return default
    return values.boolean(value, f'{self.file}: {name}')


def read_settings(folder: pathlib.Path) -> Settings:
  """Reads the tokenizer settings of a folder; there may be none.

  Raises:
    ValueError: A file is damaged; the message names it.
    OSError: A file cannot be read.
  """
  file = folder / FILE
  given = _read(file)
  named = dict(given)
  if 'added_tokens_decoder' in given:
    added = _added(given['added_tokens_decoder'], file)
  else:  # an older folder
    named |= _read(folder / 'special_tokens_map.json')
    added = {
      values.text(token, f'{folder / "added_tokens.json"}'): (
        values.integer(number, f'{folder / "added_tokens.json"}', 0),
        False,
      )
      for token, number in _read(folder / 'added_tokens.json').items()
    }
  tokens = {
    name: _content(named[f'{name}_token'], f'{file}: {name}_token')
    for name in NAMES
    if f'{name}_token' in named
  }
  config = _read(folder / 'config.json')
  defaults = _class_defaults(given, config)
  return Settings(
    file,
    given,
    {name: token for name, token in tokens.items() if token},  # '' means none
    {n: t for n, t in defaults.items() if n not in tokens},
    _end_ids(folder, config),
    added,
    read_template(folder, given, file),
  )


def _read(file: pathlib.Path) -> dict[str, Any]:
  return read_json(file, most=MOST_BYTES) if file.is_file() else {}


def _content(token: Any, place: str) -> str | None:
  """The text of a token; older files have a dict that describes the token."""
  if isinstance(token, dict):
    token = values.text(token.get('content'), f'{place}: content')
  return None if token is None else values.text(token, place)


def _added(tokens: Any, file: pathlib.Path) -> dict[str, tuple[int, bool]]:
  place, found = f'{file}: added_tokens_decoder', {}
  for number, token in values.table(tokens, place).items():
    if not number.isascii() or not number.isdigit() or len(number) > 9:
      raise ValueError(
        f'{place}: {values.shown(number)} is not an id of a token'
      )
    token = values.table(token, f'{place}: {number}')
    special = token.get('special', False)
    found[values.text(token.get('content'), f'{place}: {number}: content')] = (
      int(number),
      values.boolean(special, f'{place}: {number}: special'),
    )
  return found


def _class_defaults(given: Mapping, config: Mapping) -> dict[str, str]:
  """The special tokens of the class, which are hard-coded in transformers."""
  name = given.get('tokenizer_class') or config.get('tokenizer_class')
  if not isinstance(name, str):
    model = config.get('model_type')
    known = _BY_MODEL.get(model) if isinstance(model, str) else None
    name = f'{known}Tokenizer'
  defaults = _BY_CLASS.get(name.removesuffix('Fast'), {})
  return {name: token for name, token in defaults.items() if token != '-'}


def _end_ids(folder: pathlib.Path, config: Mapping) -> tuple[int, ...]:
  """The tokens that end a text; Llama 3 also lists its end of turn there."""
  file = folder / 'generation_config.json'
  settings = _read(file)
  if 'eos_token_id' not in settings:
    settings, file = config, folder / 'config.json'
  found = settings.get('eos_token_id')
  found = found if isinstance(found, list) else [found]
  place = f'{file}: eos_token_id'
  return tuple(
    values.integer(number, place, 0, 2**31 - 1)
    for number in found
    if number not in (None, -1)
  )
