"""Matches regular expressions of a configuration against a model's output.

For some texts, a pattern such as (a+)+b takes twice as long with every further
character. Python cannot stop it, so it runs in a process that can be killed.
"""

import pathlib
import re

from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.values import shown

_find = Confined(
  pathlib.Path(__file__).with_name('matching.py'), 'find', seconds=1.0
)


def check_pattern(pattern: str, what: str) -> None:
  """Raises ValueError unless a pattern is a regular expression.

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
  """Returns the first group of a match, or the whole match without groups.

  Args:
    pattern: The regular expression.
    text: The text to search.
    last: Take the last match instead of the first.

  Returns:
    The matched text without white space at its ends; None if there is no match
    or the group takes no part in it.

  Raises:
    ConfinedError: The search took more than a second of CPU time or too much
      memory, or its process ended.

  >>> find('answer (\\\\d)', 'answer 3, no, answer 4', last=True)
  '4'
  >>> find('answer( 3)?', 'the answer') is None
  True
  """
  return _find(pattern, text, last)


__all__ = ['ConfinedError', 'check_pattern', 'find']
