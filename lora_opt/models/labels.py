"""Names of the outputs of an adapter's head, in a file beside the adapter.

The names, not the order, tell what the outputs mean. The names in a
checkpoint's head are read by `lora_opt.models.pretrained.head_labels`.
"""

import json
import pathlib
from collections.abc import Sequence

from lora_opt import writing
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

FILE = 'labels.json'


def write_labels(folder: pathlib.Path, labels: Sequence[str]) -> None:
  """Writes the names of the outputs of the head in this folder."""
  content = {'labels': list(labels)}
  writing.write_text(folder / FILE, json.dumps(content, indent=2) + '\n')


def read_labels(folder: pathlib.Path) -> tuple[str, ...]:
  """Reads the names that `write_labels` wrote; () if there is no file.

  Raises:
    ValueError: If the file holds something else.
  """
  file = folder / FILE
  if not file.exists():
    return ()
  what = f'{file}: labels'
  names = values.items(read_json(file).get('labels'), what)
  return tuple(values.text(name, what) for name in names)
