"""The vocabulary in a GGUF file, checked."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lora_opt.reading import values

LONGEST = 1000  # characters of a token


class Vocabulary(NamedTuple):
  """Tokens by id.

  Attributes:
    tokens: Their texts, all different.
    types: Their types, by GGUF's numbers.
    scores: For SentencePiece, which tokens are merged first; otherwise empty.
    merges: For byte-level BPE, the pairs of tokens to merge, first pair first;
      otherwise empty.
  """

  tokens: list[str]
  types: list[int]
  scores: list[float]
  merges: list[tuple[str, str]]


def read_vocabulary(get: Callable[..., Any], sentencepiece: bool) -> Vocabulary:
  """Reads the arrays of a tokenizer.

  Args:
    get: Returns the value of a key, or its second argument if the key is
      missing.
    sentencepiece: True reads scores, False reads merges.

  Raises:
    ValueError: An array is invalid; the message names its key.
  """
  tokens = _list(get, 'tokens', str)
  types = _list(get, 'token_type', int)
  scores = _list(get, 'scores', float, int) if sentencepiece else []
  for key, found in (('token_type', types), ('scores', scores)):
    if (key == 'token_type' or sentencepiece) and len(found) != len(tokens):
      raise ValueError(
        f'tokenizer.ggml.{key} has {len(found)} entries for {len(tokens)} '
        'tokens'
      )
  if len(set(tokens)) < len(tokens):
    raise ValueError('tokenizer.ggml.tokens has a token twice')
  if max(map(len, tokens), default=0) > LONGEST:
    raise ValueError(
      f'tokenizer.ggml.tokens has one of more than {LONGEST} characters'
    )
  if not all(map(math.isfinite, scores)):
    raise ValueError('tokenizer.ggml.scores has one that is not finite')
  merges = [] if sentencepiece else _list(get, 'merges', str, default=[])
  return Vocabulary(tokens, types, scores, [_pair(merge) for merge in merges])


def _list(get, key: str, *kinds: type, default: Any = None) -> list:
  found = get(key, default)
  place = f'tokenizer.ggml.{key}'
  found = values.items(
    list(found) if isinstance(found, tuple) else found, place
  )
  for entry in found:
    if type(entry) not in kinds:
      raise ValueError(
        f'{place}: expected {values.kind_of(kinds[0]())}, found '
        f'{values.shown(entry)}'
      )
  return found


def _pair(merge: str) -> tuple[str, str]:
  parts = merge.split(' ')
  if len(parts) != 2:
    raise ValueError(
      'tokenizer.ggml.merges: expected two tokens with a space between them, '
      f'found {values.shown(merge)}'
    )
  return parts[0], parts[1]
