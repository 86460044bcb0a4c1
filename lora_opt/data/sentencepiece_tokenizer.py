"""SentencePiece's own tokenizer: `spiece.model`, as T5 and mT5 come.

Its conversion to `tokenizers` is not exact (pieces of equal score, combining
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

from lora_opt.data.tokenizer import read_settings

FILE = 'spiece.model'


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePieceTokenizer:
  """The sibling of `lora_opt.data.tokenizer.Tokenizer`, with its methods.

  Attributes:
    core: The library's processor.
    extra_ids: T5's sentinels behind its pieces, the last first: <extra_id_0>
      has the highest id.
  """

  core: sentencepiece.SentencePieceProcessor
  extra_ids: int = 0
  chat_template = None

  @classmethod
  def from_folder(cls, path: str | os.PathLike) -> 'SentencePieceTokenizer':
    """Reads spiece.model and, if present, tokenizer_config.json.

    Args:
      path: The folder.

    Returns:
      The tokenizer. Without a word on `extra_ids` in the settings it has T5's
      100 sentinels, or none if they are among the pieces, as for mT5.

    Raises:
      FileNotFoundError: If there is no spiece.model.
      ValueError: If a file is damaged.
    """
    file = pathlib.Path(path) / FILE
    if not file.is_file():
      raise FileNotFoundError(f'no {FILE} in {path}')
    try:
      core = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
      raise ValueError(f'{file} is not a SentencePiece model') from error
    settings = read_settings(pathlib.Path(path))
    last = core.id_to_piece(core.get_piece_size() - 1)
    default = 0 if 'extra_id_' in last else 100
    return cls(core, settings.get('extra_ids', default))

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

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids, without the special tokens."""
    size = self.core.get_piece_size()
    return self.core.decode([int(i) for i in ids if i < size])

  def apply_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Raises ValueError: such a tokenizer has no chat template."""
    raise ValueError('the tokenizer has no chat template')


def _known(token_id: int) -> int | None:
  return None if token_id < 0 else token_id
