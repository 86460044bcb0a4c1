"""Regular expressions from a configuration, on what a model wrote.

A pattern such as (a+)+b takes time that doubles with every character of some
texts. Python cannot stop it, so it runs in a process that can be stopped.
"""

import pathlib
import re

from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.values import shown

_find = Confined(
  pathlib.Path(__file__).with_name('matching.py'), 'find', seconds=1.0
)


def check_pattern(pattern: str, what: str) -> None:
  """Raises ValueError unless a text is a regular expression.

  >>> check_pattern('answer is ([A-E]', 'extract')
  Traceback (most recent call last):
  ...
  ValueError: extract='answer is ([A-E]' is not a regular expression: missing \
), unterminated subpattern at position 10
  """
  try:
    re.compile(pattern)
  except (re.error, OverflowError, RecursionError) as error:
    raise ValueError(
      f'{what}={shown(pattern)} is not a regular expression: {error}'
    ) from error


def find(pattern: str, text: str, *, last: bool = False) -> str | None:
  """What a match says: its first group, if it has one, or else the whole.

  Args:
    pattern: The regular expression.
    text: Where it is looked for.
    last: Take the last match instead of the first.

  Returns:
    The text without white space at its ends; None where there is no match, or
    the group is not a part of it.

  Raises:
    ConfinedError: Finding it took more than a second of the processor.

  >>> find('answer (\\\\d)', 'answer 3, no, answer 4', last=True)
  '4'
  >>> find('answer( 3)?', 'the answer') is None
  True
  """
  return _find(pattern, text, last)


__all__ = ['ConfinedError', 'check_pattern', 'find']
