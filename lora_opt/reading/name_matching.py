"""What `lora_opt.reading.name_patterns` runs in a process of its own."""

import re


def match(patterns, texts):
  """For every pattern and text: the group idx of the match, None if none.

  Args:
    patterns: Pairs of 'match' or 'fullmatch', and a regular expression.
    texts: What to try them on.

  Returns:
    A list for each pattern: for each text None, or what its group `idx` has
    matched, '' where there is no such group.
  """
  rows = []
  for how, pattern in patterns:
    test = getattr(re.compile(pattern), how)
    found = [test(text) for text in texts]
    rows.append([m and (m.groupdict().get('idx') or '') for m in found])
  return rows
