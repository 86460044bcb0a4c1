"""Extraction against the rules that the benchmarks' publishers give."""

import re

import pytest

from lora_opt.data import extraction

ANSWERS = [
  'She has 3 + 4 = 7 apples.\n#### 7',
  '#### 1,036',
  '#### -12',
  '#### 3.50',
  '#### 3.0',
  '#### 5 and then #### 6',
  '####7',
  '#### $5',
  '#### seven',
  '####  8',
  '#### 9.',
  'the answer is 10',
  '',
  '#### ,',
  'x#### 11y',
  '####\n12',
]


def publisher(text):
  """GSM8K's rule: first match of its expression, commas taken out."""
  match = re.search(r'#### (\-?[0-9\.\,]+)', text)
  return match and match.group(1).strip().replace(',', '')


@pytest.mark.parametrize('text', ANSWERS)
def test_gsm8k_extracts_as_its_publisher(text):
  assert extraction.gsm8k(text) == publisher(text)


def test_gsm8k_compares_texts_not_numbers():
  assert extraction.gsm8k('#### 3.0') != extraction.gsm8k('#### 3')
  assert extraction.gsm8k('#### 1,000') == extraction.gsm8k('#### 1000')
