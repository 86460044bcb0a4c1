"""The code that runs in the subprocess of `lora_opt.reading.patterns`."""

import re


def find(pattern: str, text: str, last: bool) -> str | None:
  """The first group of the first or last match; all of it without groups."""
  if last:
    found = None
    for found in re.finditer(pattern, text):  # noqa: B007
      pass
  else:
    found = re.search(pattern, text)
  if found is None:
    return None
  said = found[1 if found.re.groups else 0]
  return None if said is None else said.strip()
