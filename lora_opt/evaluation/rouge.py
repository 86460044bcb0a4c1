"""ROUGE-L as rouge-score computes it, in time about linear in the text.

rouge-score fills a table of all pairs of words, and its stemmer recurses once
for every y of yyyy...: both take long on the output of a model that repeats
itself.
"""

import functools
import re
from collections.abc import Sequence

# Longer strings are not words, and are not stemmed.
_LONGEST_WORD = 100


def f_measure(reference: str, text: str, *, stem: bool) -> float:
  """F-measure of the longest common subsequence of words.

  Args:
    reference: The right text.
    text: The text that was written.
    stem: Compare the stems (Porter) of words of more than three letters.

  >>> round(f_measure('the cat sat down', 'The cats sat.', stem=True), 3)
  0.857
  """
  right, found = (words(each, stem) for each in (reference, text))
  if not right or not found:
    return 0.0
  common = common_length(right, found)
  precision, recall = common / len(found), common / len(right)
  total = precision + recall
  return 2 * precision * recall / total if total > 0 else 0.0


def words(text: str, stem: bool) -> list[str]:
  """Lower-case words of letters and digits, or their stems."""
  found = re.findall('[a-z0-9]+', text.lower())
  return [_stem(word) for word in found] if stem else found


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
  """Length of the longest common subsequence.

  Each row of the usual table is stored as the bits of one integer (Hyyrö 2004):
  bit i is 0 if the row increases from column i to the next.
  """
  places: dict[str, int] = {}
  for place, word in enumerate(first):
    places[word] = places.get(word, 0) | 1 << place
  every = (1 << len(first)) - 1
  row = every
  for word in second:
    grown = row & places.get(word, 0)
    row = (row + grown | row - grown) & every
  return len(first) - row.bit_count()


@functools.lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
  if not 3 < len(word) <= _LONGEST_WORD:
    return word
  return _stemmer().stem(word)


@functools.cache
def _stemmer():
  from nltk.stem.porter import PorterStemmer  # slow, and needed only here

  return PorterStemmer()
