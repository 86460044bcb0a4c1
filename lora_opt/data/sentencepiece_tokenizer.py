"""SentencePiece's own tokenizer, which T5, mT5 and DeBERTa-v3 come with.

Converting it to `tokenizers` is not exact (pieces of equal score, combining
characters), so the original library does the work.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import sentencepiece
from absl import logging

from lora_opt.data import tokenizer_trial
from lora_opt.data.tokenizer import TextIds
from lora_opt.data.tokenizer_settings import Settings, read_settings
from lora_opt.reading import values
from lora_opt.reading.confined import Confined, ConfinedError

_try_sentencepiece = Confined(
  tokenizer_trial.__file__, 'try_sentencepiece', seconds=8.0, memory=2**30
)
FILES = ('spiece.model', 'spm.model')  # T5's name, and DeBERTa's


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePieceTokenizer:
  """The sibling of `lora_opt.data.tokenizer.Tokenizer`, without chats.

  Attributes:
    core: The library's processor.
    extra_ids: Number of T5's sentinels. Their ids follow those of the pieces,
      in reverse order: <extra_id_0> has the highest id.
  """

  core: sentencepiece.SentencePieceProcessor
  extra_ids: int = 0
  chat_template = None
  add_bos = False  # neither T5 nor DeBERTa opens a text with bos_id

  @classmethod
  def from_folder(cls, path: str | os.PathLike) -> 'SentencePieceTokenizer':
    """Reads one of `FILES` and, if present, tokenizer_config.json.

    Args:
      path: The folder.

    Returns:
      The tokenizer. If the settings do not give `extra_ids`, it has T5's 100
      sentinels, or none if they are already among the pieces (mT5) or if there
      is a piece [CLS] (DeBERTa).

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a file is damaged.
    """
    files = [pathlib.Path(path) / name for name in FILES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
      raise FileNotFoundError(f'no {" or ".join(FILES)} in {path}')
    try:
      _try_sentencepiece(str(file))
      core = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError, ConfinedError) as error:
      raise ValueError(
        f'{file} is not a SentencePiece model: '
        f'{values.one_line(str(error), 200)}'
      ) from None
    settings = read_settings(pathlib.Path(path))
    _check_special(core, settings)
    last = core.id_to_piece(core.get_piece_size() - 1)
    own = 'extra_id_' in last or not core.is_unknown(core.piece_to_id('[CLS]'))
    default = 0 if own else 100
    extra = settings.given.get('extra_ids', default)
    place = f'{settings.file}: extra_ids'
    return cls(core, values.integer(extra, place, 0, 10**4))

  @property
  def bos_id(self) -> int | None:
    """Token that opens a text, or None."""
    return _known(self.core.bos_id())

  @property
  def eos_id(self) -> int | None:
    """Token that ends a text, or None."""
    return _known(self.core.eos_id())

  @property
  def pad_id(self) -> int | None:
    """Token that fills up a batch, or None."""
    return _known(self.core.pad_id())

  @property
  def vocab_size(self) -> int:
    """Number of tokens, special ones included."""
    return self.core.get_piece_size() + self.extra_ids

  @property
  def largest_id(self) -> int:
    """The largest id of a token."""
    return self.vocab_size - 1

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of model and sentinels, in hexadecimal."""
    model = self.core.serialized_model_proto()
    return hashlib.sha256(model + str(self.extra_ids).encode()).hexdigest()

  @functools.cached_property
  def _special(self) -> Mapping[str, int]:
    size = self.core.get_piece_size()
    control = {
      self.core.id_to_piece(i): i
      for i in range(size)
      if self.core.is_control(i)
    }
    sentinels = {
      f'<extra_id_{i}>': self.vocab_size - 1 - i for i in range(self.extra_ids)
    }
    return control | sentinels

  @functools.cached_property
  def _special_pattern(self) -> re.Pattern:
    return re.compile(f'({"|".join(map(re.escape, self._special))})')

  def encode(self, text: str) -> list[int]:
    """Ids of a text; special tokens in it are recognized, none are added."""
    parts = self._special_pattern.split(text) if self._special else [text]
    ids = []
    for part in parts:
      known = self._special.get(part)
      ids += self.core.encode(part) if known is None else [known]
    return ids

  def encode_texts(self, text: str, pair: str | None = None) -> TextIds:
    """Ids of one or two texts in DeBERTa's template, [CLS] a [SEP] b [SEP].

    Raises:
      ValueError: If the model has no pieces [CLS] and [SEP].
    """
    first, last = (self.core.piece_to_id(p) for p in ('[CLS]', '[SEP]'))
    if self.core.is_unknown(first) or self.core.is_unknown(last):
      raise ValueError(
        'the SentencePiece model has no pieces [CLS] and [SEP]: it is not one '
        'of an encoder'
      )
    ids, types, texts = [first], [0], [None]
    for number, part in enumerate((text, pair)):
      if part is not None:
        own = self.encode(part)
        ids += [*own, last]
        types += [number] * (len(own) + 1)
        texts += [number] * len(own) + [None]
    return TextIds(ids, types, texts)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of the ids, without the special tokens."""
    size = self.core.get_piece_size()
    return self.core.decode([int(i) for i in ids if i < size])

  def apply_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Raises ValueError: such a tokenizer has no chat template."""
    raise ValueError('the tokenizer has no chat template')


def _check_special(core, settings: Settings) -> None:
  """Warns if the files beside a model name other special tokens than it has."""
  for name in ('bos', 'eos', 'pad'):
    token, known = settings.tokens.get(name), getattr(core, f'{name}_id')()
    if token is not None and known >= 0 and core.id_to_piece(known) != token:
      logging.warning(
        '%s: %s_token is %r, but the model has %r, which is used',
        settings.file,
        name,
        token,
        core.id_to_piece(known),
      )


def _known(token_id: int) -> int | None:
  return None if token_id < 0 else token_id
