"""Opens the tokenizer of a Hugging Face folder, whatever its kind."""

import os
import pathlib

from lora_opt.data import sentencepiece_tokenizer, vocabulary_files
from lora_opt.data.sentencepiece_tokenizer import SentencePieceTokenizer
from lora_opt.data.tokenizer import Tokenizer


def open_tokenizer(
  path: str | os.PathLike,
) -> Tokenizer | SentencePieceTokenizer:
  """Reads tokenizer.json or, if there is none, the files it is made from.

  These are spiece.model or spm.model (SentencePiece), vocab.json with
  merges.txt (RoBERTa, GPT-2, CLIP), or vocab.txt (BERT).

  Args:
    path: The folder.

  Returns:
    The tokenizer.

  Raises:
    FileNotFoundError: If none of these files exists.
    ValueError: If a file is damaged or names an unknown special token.
  """
  folder = pathlib.Path(path)
  if (folder / 'tokenizer.json').is_file():
    return Tokenizer.from_folder(folder)
  if any((folder / file).is_file() for file in sentencepiece_tokenizer.FILES):
    return SentencePieceTokenizer.from_folder(folder)
  if (folder / 'merges.txt').is_file() and (folder / 'vocab.json').is_file():
    return vocabulary_files.from_byte_pairs(folder)
  if (folder / 'vocab.txt').is_file():
    return vocabulary_files.from_wordpiece(folder)
  known = ', '.join((*sentencepiece_tokenizer.FILES, 'vocab.txt'))
  raise FileNotFoundError(
    f'no tokenizer.json in {folder}, nor one of {known}, nor vocab.json with '
    'merges.txt'
  )
