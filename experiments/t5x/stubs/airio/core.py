"""Stands for airio, which is on no package index; T5X names its classes."""


class Task:
  """No task is one."""


class Mixture:
  """No mixture is one."""


class AirIODatasetIterator:
  """No iterator is one."""


class DatasetProviderBase:
  """No provider is one."""
