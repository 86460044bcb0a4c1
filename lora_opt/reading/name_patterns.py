"""Matches untrusted regular expressions against names, with a time limit."""

import pathlib
import re
from collections.abc import Sequence

from lora_opt.reading import name_matching
from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.values import shown

SECONDS = 3.0
_LONGEST = 1_000_000
_MOST = 2000
# Patterns without alternatives and repetitions cannot take long.
_PLAIN = re.compile(r'[\w.\-]*')

_confined = Confined(
  pathlib.Path(name_matching.__file__), 'match', seconds=SECONDS, memory=2**28
)


def find(
  pattern: str,
  texts: Sequence[str],
  place: str,
  *,
  within: str = '{}',
  how: str = 'fullmatch',
) -> list[str | None]:
  """Matches a regular expression against texts, as Python's `re` does.

  Args:
    pattern: The untrusted pattern.
    texts: The texts to match.
    place: Where the pattern comes from, for messages.
    within: Our own expression around the pattern, which replaces the {}.
    how: 'fullmatch', or 'match' to match the beginning of a text.

  Returns:
    For each text: None without a match, else the text of the group `idx`, or ''
    if there is no such group.

  Raises:
    ValueError: It is not a regular expression, or takes too long.

  >>> find('.*_proj', ['q_proj', 'lm_head'], 'adapter_config.json')
  ['', None]
  >>> find('(a.+)+b', ['a' * 100], 'adapter_config.json: target_modules')
  Traceback (most recent call last):
  ...
  ValueError: adapter_config.json: target_modules: '(a.+)+b' took more than \
3 seconds
  """
  return find_each([pattern], texts, place, within=within, how=how)[0]


def find_each(
  patterns: Sequence[str],
  texts: Sequence[str],
  place: str,
  *,
  within: str = '{}',
  how: str = 'fullmatch',
) -> list[list[str | None]]:
  """Matches several expressions, with one time limit for all; see `find`.

  >>> find_each(['q', 'v'], ['q', 'k'], 'adapter_config.json')
  [['', None], [None, None]]
  """
  said = shown(patterns[0] if len(patterns) == 1 else list(patterns))
  if len(patterns) > _MOST or sum(map(len, patterns)) > _LONGEST:
    raise ValueError(
      f'{place}: {said}: more than {_MOST} patterns, or {_LONGEST} characters '
      'of them, are not tried'
    )
  whole = [(how, within.replace('{}', pattern)) for pattern in patterns]
  try:
    if all(_PLAIN.fullmatch(pattern) for pattern in patterns):
      return name_matching.match(whole, list(texts))
    return _confined(whole, list(texts))
  except (ConfinedError, re.error) as error:
    raise ValueError(f'{place}: {said} {_reason(error)}') from None


def _reason(error: Exception) -> str:
  text = str(error)
  if text.startswith(('took', 'its process')):
    return text
  return f'is not a regular expression: {text.partition(": ")[2] or text}'
