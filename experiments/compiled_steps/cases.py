"""The cases: models, batches and devices, the same on both sides."""

import json
import pathlib
from typing import NamedTuple

PUBLISHED = pathlib.Path(__file__).parents[2] / 'configs/published'
RANK, ALPHA = 16, 32.0
MODELS = ('gemma_2b', 'gemma_7b', 'llama3_8b')
# Number of rows of 1024 tokens on all devices together: two on each.
ROWS = {'v5e-8': 16, 'v5e-64': 128, '8xh100': 16}
LENGTH = 1024


class Case(NamedTuple):
  """A model on a topology."""

  model: str
  topology: str

  @property
  def rows(self) -> int:
    """Number of rows of a batch, on all devices together."""
    return ROWS[self.topology]

  @property
  def config(self) -> dict:
    """The published configuration."""
    file = PUBLISHED / self.model / 'config.json'
    return json.loads(file.read_text(encoding='utf-8'))

  @property
  def name(self) -> str:
    """The name as on the command line."""
    return f'{self.model}/{self.topology}'


def case(name: str) -> Case:
  """Reads the name of a case.

  Raises:
    ValueError: The model or the topology is unknown.

  >>> case('gemma_2b/v5e-8').rows
  16
  """
  model, _, topology = name.partition('/')
  if model not in MODELS or topology not in ROWS:
    raise ValueError(
      f'case {name!r}: write MODEL/TOPOLOGY with one of {", ".join(MODELS)} '
      f'and one of {", ".join(ROWS)}'
    )
  return Case(model, topology)
