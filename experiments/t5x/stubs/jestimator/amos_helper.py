"""A stub of the partitioning of Amos."""


def state_partition_rule(state, params_axes):
  """Not available: always raises ValueError."""
  raise ValueError('install jestimator for the Amos optimizer')
