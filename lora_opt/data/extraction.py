"""Extractors: functions that find the answer in what a model wrote."""

import re

_NUMBER = r'-?\$?\d[\d,]*(?:\.\d+)?'


def after_hashes(text: str) -> str | None:
  """The number after the last '####', the form of GSM8K's own answers.

  >>> after_hashes('18 eggs at 2 dollars.\\n#### $1,036')
  '1036'
  """
  return _last(r'####\s*(' + _NUMBER + ')', text)


def last_number(text: str) -> str | None:
  """The last number in the text: for models that were not told a form.

  >>> last_number('That makes 3 + 4 = 7.0 apples.')
  '7'
  """
  return _last('(' + _NUMBER + ')', text)


def _last(pattern: str, text: str) -> str | None:
  """The last match as a number in one spelling, so that texts compare."""
  found = re.findall(pattern, text)
  if not found:
    return None
  number = re.sub(r'[$,]', '', found[-1])
  return re.sub(r'\.0+$', '', number)
