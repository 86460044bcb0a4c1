"""Extractors find the answer in what a model wrote; scorers judge it.

`gsm8k` and `llm_adapters` follow the rules of the benchmarks' publishers
exactly. `last_number`, `after_hashes` and `same_number` read numbers as
described in lora_opt.reading.numbers.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from lora_opt.reading import numbers as reading
from lora_opt.reading import patterns
from lora_opt.reading.values import shown

# A longer answer counts as no answer: it scores 0 and is not examined.
LONGEST = 200_000


def gsm8k(text: str) -> str | None:
  """The rule of GSM8K's publisher: the first '#### number', without commas.

  Answers are then compared as texts. See `dataset.py` in
  https://github.com/openai/grade-school-math.

  >>> gsm8k('18 eggs at 2 dollars.\\n#### 1,036')
  '1036'
  """
  found = re.search(r'#### (-?[0-9.,]+)', text)
  return found and found[1].replace(',', '')


def llm_adapters(text: str) -> str | None:
  """The rule of LLM-Adapters for arithmetic: the last number, without commas.

  A hyphen before a digit is always a minus sign. See `evaluate.py`
  in https://github.com/AGI-Edgerunners/LLM-Adapters.

  >>> llm_adapters('He has 5-3 or 1,002 left.'), llm_adapters('So 5-3')
  ('1002', '-3')
  """
  # The end of the answer is enough to find its last number.
  text = text[-reading.LONGEST :].replace(',', '')
  found = re.findall(r'-?\d+\.?\d*', text)
  return found[-1] if found else None


def after_hashes(text: str) -> str | None:
  """The number after the last '####', in standard form: a lenient `gsm8k`.

  >>> after_hashes('18 eggs at 2 dollars.\\n#### $1,036.50')
  '1036.5'
  """
  text = text[-reading.LONGEST :]
  place = text.rfind('####')
  while place >= 0:
    number = reading.leading_number(text[place + 4 :][:2000].lstrip())
    if number is not None:
      return reading.spelled(number)
    place = text.rfind('####', 0, place)
  return None


def last_number(text: str) -> str | None:
  """The last number in the text, for models that were given no answer format.

  >>> last_number('That makes 3 + 4 = 7.0 apples.')
  '7'
  """
  number = reading.last_number(text)
  return None if number is None else reading.spelled(number)


def first_match(pattern: str) -> Callable[[str], str | None]:
  """Makes an extractor of the first match of a regular expression.

  >>> first_match('answer[1-5]')('the correct answer is answer3, not answer1')
  'answer3'
  """
  patterns.check_pattern(pattern, 'first_match.pattern')
  return lambda text: find(pattern, text)


def find(pattern: str, text: str, *, last: bool = False) -> str | None:
  """Like `patterns.find`, but warns and returns None if it is stopped."""
  try:
    return patterns.find(pattern, text, last=last)
  except patterns.ConfinedError as error:
    if 'did not start' in str(error):
      raise
    logging.warning(
      'the regular expression %s was stopped (%s) on an answer of %d '
      'characters, which counts as none. Let no repetition hold another',
      shown(pattern),
      error,
      len(text),
    )
    return None


def same_number(
  field: str, tolerance: float = 1e-3
) -> Callable[[str, Mapping[str, Any]], float]:
  """Makes a scorer: 1 if the answer is the number in this field of the row.

  Raises:
    ValueError: `tolerance` is negative or not finite; when it scores, if the
      field holds no number.

  >>> same_number('final')('6.0', {'final': '6'})
  1.0
  """
  if not (math.isfinite(tolerance) and tolerance >= 0):
    raise ValueError(
      f'same_number.tolerance={tolerance} must be a finite number, at least 0'
    )

  def score(prediction: str, row: Mapping[str, Any]) -> float:
    right = reading.read_number(str(row[field]))
    if right is None:
      raise ValueError(
        f'same_number: field {field!r} is {shown(row[field])}, not a number'
      )
    found = reading.read_number(prediction)
    if found is None:
      return 0.0
    return float(abs(float(found) - float(right)) <= tolerance)

  return score


def spelled_alike(extract: Any, reference: str) -> str:
  """A reference answer, spelled as the extractor spells its answers."""
  if not getattr(extract, 'reads_numbers', False):
    return reference
  number = reading.read_number(reference)
  return reference if number is None else reading.spelled(number)


# As attributes, which are kept when gin wraps the functions.
after_hashes.reads_numbers = last_number.reads_numbers = True
