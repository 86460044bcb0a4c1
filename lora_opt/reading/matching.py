"""What runs in the process of `lora_opt.reading.patterns`."""

import re


def find(pattern: str, text: str, last: bool) -> str | None:
  """What the first or the last match says: its first group, or else all."""
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
