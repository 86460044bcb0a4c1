"""tokenizer.json, looked through before its library reads it."""

import pathlib

import tokenizers

from lora_opt.reading.files import read_bytes
from lora_opt.reading.json_text import parse_json
from lora_opt.reading.values import one_line


def read_tokenizer(file: pathlib.Path) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is damaged, or no tokenizer.
  """
  data = read_bytes(file)
  parse_json(data, str(file))
  try:
    core = tokenizers.Tokenizer.from_buffer(data)
  except Exception as error:  # the Rust side raises plain Exception
    raise ValueError(
      f'{file} is not a tokenizer: {one_line(str(error))}'
    ) from error
  # Ids are to be what was encoded, not cut or filled to a stored length.
  core.no_truncation()
  core.no_padding()
  return core
