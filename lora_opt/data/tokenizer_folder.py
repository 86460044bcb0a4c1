"""The tokenizer of a Hugging Face folder, of whichever kind it is."""

import os
import pathlib

from lora_opt.data import sentencepiece_tokenizer
from lora_opt.data.sentencepiece_tokenizer import SentencePieceTokenizer
from lora_opt.data.tokenizer import Tokenizer


def open_tokenizer(
  path: str | os.PathLike,
) -> Tokenizer | SentencePieceTokenizer:
  """Reads tokenizer.json, or spiece.model where there is no such file.

  Args:
    path: The folder.

  Returns:
    The tokenizer.

  Raises:
    FileNotFoundError: If there is neither.
    ValueError: If a file is damaged or names an unknown special token.
  """
  folder = pathlib.Path(path)
  if (folder / 'tokenizer.json').is_file():
    return Tokenizer.from_folder(folder)
  if (folder / sentencepiece_tokenizer.FILE).is_file():
    return SentencePieceTokenizer.from_folder(folder)
  raise FileNotFoundError(
    f'no tokenizer.json in {folder}, nor {sentencepiece_tokenizer.FILE}'
  )
