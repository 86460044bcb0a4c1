"""A stub of the Amos optimizer, which T5X refers to when it is imported."""

from typing import NamedTuple


class ScaleByAmosState(NamedTuple):
  """No state is an instance of this class."""


def amos(*args, **kwargs):
  """Not available: always raises ValueError."""
  raise ValueError('install jestimator for the Amos optimizer')
