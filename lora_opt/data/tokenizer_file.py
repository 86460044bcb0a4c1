"""Reads a tokenizer.json, checking it before the `tokenizers` library does.

Its parts are first tried in a separate process. Otherwise a regular expression
that backtracks, a replacement that grows without end or a damaged table could
stop this process or fill its memory. Everything but the vocabulary is tried, so
that a large vocabulary takes no longer.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import tokenizers
from absl import logging

from lora_opt.data import tokenizer_trial
from lora_opt.reading import values
from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.files import read_bytes
from lora_opt.reading.json_text import parse_json

MOST_TOKENS = 2**24
# How many times as long all replacements together may make a text.
MOST_GROWTH = 64
PARTS = ('normalizer', 'pre_tokenizer', 'post_processor', 'decoder')

_try_parts = Confined(
  tokenizer_trial.__file__, 'try_parts', seconds=8.0, memory=2**30
)


def read_tokenizer(file: pathlib.Path) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is damaged, not a tokenizer, or takes too much time or memory
      to run.
  """
  data = read_bytes(file)
  content = values.table(parse_json(data, str(file)), str(file))
  place = str(file)
  added = _added(content, place)
  _check_model(content, place)
  for part in PARTS:
    _check_growth(content.get(part), f'{place}: {part}')
  try:
    _try_parts(*_without_vocabulary(content))
  except ConfinedError as error:
    raise ValueError(
      f'{file}: its {", ".join(PARTS[:-1])} or {PARTS[-1]} cannot be run: '
      f'{values.one_line(str(error))}'
    ) from None
  core = guarded(place, tokenizers.Tokenizer.from_buffer, _stripped(data))
  # Ids must not be cut or padded to a length stored in the file.
  core.no_truncation()
  core.no_padding()
  if getattr(core.model, 'dropout', None):
    logging.warning('%s: its dropout of merges is not used', file)
    core.model.dropout = None
  _check_added(core, added, place)
  return core


def guarded(place: str, function, *arguments, **settings) -> Any:
  """Calls the library, which may raise any kind of exception, even panics.

  Raises:
    ValueError: The call failed; the message begins with `place`.
  """
  try:
    return function(*arguments, **settings)
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:
    # Exceptions from signal handlers do not come from the library.
    if not isinstance(error, Exception) and 'Panic' not in type(error).__name__:
      raise
    raise ValueError(
      f'{place} is not a tokenizer that can be run: '
      f'{values.one_line(str(error))}'
    ) from None


def _stripped(data: bytes) -> bytes:
  return data.removeprefix(b'\xef\xbb\xbf')


def _added(content: dict, place: str) -> list[dict]:
  place = f'{place}: added_tokens'
  found = values.items(content.get('added_tokens') or [], place)
  for number, token in enumerate(found):
    where = f'{place}: {number}'
    values.table(token, where)
    values.integer(token.get('id'), f'{where}: id', 0, MOST_TOKENS)
    values.text(token.get('content'), f'{where}: content')
  return found


def _check_model(content: dict, place: str) -> None:
  """Checks that the ids of the vocabulary are in range and not used twice."""
  model = values.table(content.get('model'), f'{place}: model')
  vocabulary = model.get('vocab')
  where = f'{place}: model: vocab'
  if isinstance(vocabulary, list):  # Unigram's, in the order of the ids
    for entry in vocabulary:
      values.items(entry, where, 2)
      values.text(entry[0], where)
      values.number(entry[1], f'{where}: {values.shown(entry[0])}')
    return
  for token, number in values.table(vocabulary, where).items():
    if type(number) is not int or not 0 <= number <= MOST_TOKENS:
      values.integer(number, f'{where}: {values.shown(token)}', 0, MOST_TOKENS)
  if len(set(vocabulary.values())) < len(vocabulary):
    raise ValueError(f'{where}: two tokens have the same id')


def _check_growth(part: Any, place: str) -> None:
  growth = 1.0
  for one in _steps(part, place):
    content = one.get('content', one.get('prepend'))
    if one.get('type') in ('Replace', 'Prepend') and isinstance(content, str):
      pattern = one.get('pattern')
      replaced = pattern.get('String') if isinstance(pattern, dict) else None
      size = len(replaced) if isinstance(replaced, str) else 1
      growth *= max(1.0, len(content) / max(1, size))
    if growth > MOST_GROWTH:
      raise ValueError(
        f'{place}: its replacements make texts more than {MOST_GROWTH} times '
        'as long'
      )


def _steps(part: Any, place: str) -> Iterator[dict]:
  """All steps of a part, including each step of its sequences."""
  if part is None:
    return
  yield values.table(part, place)
  for inside in part.values():
    if isinstance(inside, list):
      for one in inside:
        if isinstance(one, dict) and 'type' in one:
          yield from _steps(one, place)


def _without_vocabulary(content: dict) -> tuple[str, list[str]]:
  """The file with a vocabulary of single characters, and some added tokens."""
  added = [dict(token) for token in (content.get('added_tokens') or [])[:500]]
  small = {name: content.get(name) for name in ('version', *PARTS)}
  letters = {chr(33 + i): i for i in range(94)}
  model = {'type': 'BPE', 'vocab': letters, 'merges': []}
  small |= {'added_tokens': added, 'model': model}
  for number, token in enumerate(added):
    token['id'] = len(letters) + number
  return json.dumps(small), [t['content'] for t in added][:50]


def _check_added(core, added: list[dict], place: str) -> None:
  for token in added:
    known = core.token_to_id(token['content'])
    if token['content'] and known != token['id']:
      logging.warning(
        '%s: added token %r is said to have id %d; the vocabulary has it as %s',
        place,
        token['content'],
        token['id'],
        known,
      )
