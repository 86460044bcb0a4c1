"""What the outputs of an adapter's head are called, in a file beside it.

Names, not places, say what the outputs mean. What the head of a checkpoint has
is read by `lora_opt.models.pretrained.head_labels`.
"""

import json
import pathlib
from collections.abc import Sequence

from lora_opt import writing
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

FILE = 'labels.json'


def write_labels(folder: pathlib.Path, labels: Sequence[str]) -> None:
  """Writes what the outputs of a head in this folder are called."""
  content = {'labels': list(labels)}
  writing.write_text(folder / FILE, json.dumps(content, indent=2) + '\n')


def read_labels(folder: pathlib.Path) -> tuple[str, ...]:
  """Reads what `write_labels` wrote; () without such a file.

  Raises:
    ValueError: It holds something else.
  """
  file = folder / FILE
  if not file.exists():
    return ()
  what = f'{file}: labels'
  names = values.items(read_json(file).get('labels'), what)
  return tuple(values.text(name, what) for name in names)
