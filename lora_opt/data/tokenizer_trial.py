"""Tries the parts of a tokenizer; runs in a process with limits.

On a damaged or hostile file, the `tokenizers` and SentencePiece libraries may
end the process, panic or run for hours. Nothing of this project is imported
here.
"""

import json

# Words, digits, runs of one character, characters of several bytes, and
# characters that normalizers change.
SAMPLES = (
  '',
  'Hello, world! 12345 it\'s <s>\n\n  "x"\t',
  'a' * 300,
  ' ' * 300,
  'ab1 ' * 75,
  'é東🙂ﬁ\u0301\u200d\x00\ufffd',
)


def try_parts(text: str, tokens: list[str]) -> None:
  """Runs all parts of a tokenizer.json except its vocabulary.

  Args:
    text: The content of the file, without its own vocabulary.
    tokens: Some of the special tokens.
  """
  import tokenizers

  try:
    core = tokenizers.Tokenizer.from_str(text)
    core.no_truncation()
    core.no_padding()
    for sample in (*SAMPLES, ' '.join(tokens)):
      core.encode(sample, add_special_tokens=False)
      core.encode(sample, sample)
    core.decode(list(range(min(300, core.get_vocab_size()))))
  except BaseException as error:  # a panic is not an Exception
    raise ValueError(str(error)[:300]) from None


def try_sentencepiece(file: str) -> None:
  """Loads a SentencePiece model and runs it."""
  import sentencepiece

  core = sentencepiece.SentencePieceProcessor(model_file=file)
  size = core.get_piece_size()
  for sample in SAMPLES:
    ids = core.encode(sample)
    if any(not 0 <= i < size for i in ids):
      raise ValueError('it gives ids beyond its pieces')
    core.decode(ids)
  # Every piece must be valid text.
  json.dumps([core.id_to_piece(i) for i in range(size)])
