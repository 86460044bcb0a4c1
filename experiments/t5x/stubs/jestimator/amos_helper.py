"""Stands for the partitioning of Amos."""


def state_partition_rule(state, params_axes):
  """Not here."""
  raise ValueError('install jestimator for the Amos optimizer')
