"""Extractors find the answer in what a model wrote; scorers judge it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

_NUMBER = r'-?\$?\d[\d,]*(?:\.\d+)?'


def gsm8k(text: str) -> str | None:
  """The publisher's own rule of GSM8K: first '#### number', commas left out.

  Answers are then compared as texts. See `dataset.py` in
  https://github.com/openai/grade-school-math.

  >>> gsm8k('18 eggs at 2 dollars.\\n#### 1,036')
  '1036'
  """
  found = re.search(r'#### (-?[0-9.,]+)', text)
  return found and found[1].replace(',', '')


def after_hashes(text: str) -> str | None:
  """The number after the last '####', in one spelling: a lenient `gsm8k`.

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


def first_match(pattern: str) -> Callable[[str], str | None]:
  """Makes an extractor of the first match of a regular expression.

  >>> first_match('answer[1-5]')('the correct answer is answer3, not answer1')
  'answer3'
  """

  def extract(text: str) -> str | None:
    found = re.search(pattern, text)
    return found and group_of(found)

  return extract


def group_of(found: re.Match) -> str | None:
  """What a match says: its first group, if it has one, or else the whole.

  >>> group_of(re.search('answer (\\\\d)', 'the answer 3'))
  '3'
  >>> group_of(re.search('answer( 3)?', 'the answer')) is None
  True
  """
  text = found[1 if found.re.groups else 0]
  return text and text.strip()


def same_number(
  field: str, tolerance: float = 1e-3
) -> Callable[[str, Mapping[str, Any]], float]:
  """Makes a scorer: 1 if the answer is the number of this field of the row.

  >>> same_number('final')('6.0', {'final': '6'})
  1.0
  """

  def score(prediction: str, row: Mapping[str, Any]) -> float:
    try:
      difference = abs(float(prediction) - float(row[field]))
    except ValueError:
      return 0.0
    return float(difference <= tolerance)

  return score


def _last(pattern: str, text: str) -> str | None:
  """The last match as a number in one spelling, so that texts compare."""
  found = re.findall(pattern, text)
  if not found:
    return None
  number = re.sub(r'[$,]', '', found[-1])
  return re.sub(r'\.0+$', '', number)
