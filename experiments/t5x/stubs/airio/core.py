"""A stub of airio, which is on no package index; T5X refers to its classes."""


class Task:
  """No task is an instance of this class."""


class Mixture:
  """No mixture is an instance of this class."""


class AirIODatasetIterator:
  """No iterator is an instance of this class."""


class DatasetProviderBase:
  """No provider is an instance of this class."""
