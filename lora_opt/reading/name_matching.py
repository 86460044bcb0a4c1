"""The code that `lora_opt.reading.name_patterns` runs in a subprocess."""

import re


def match(patterns, texts):
  """Matches every pattern against every text.

  Args:
    patterns: Pairs of 'match' or 'fullmatch', and a regular expression.
    texts: The texts to match.

  Returns:
    A list for each pattern, with an entry for each text: None without a match,
    else the text of the group `idx`, or '' if there is no such group.
  """
  rows = []
  for how, pattern in patterns:
    test = getattr(re.compile(pattern), how)
    found = [test(text) for text in texts]
    rows.append([m and (m.groupdict().get('idx') or '') for m in found])
  return rows
