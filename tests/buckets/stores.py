"""A bucket of an emulator, with what tests do to its objects."""

import importlib.util
import os

import pytest

from tests.buckets import servers


def check_installed():
  """Skips a module unless there is what its tests need."""
  for package in ('gcsfs', 's3fs', 'moto', 'gcp_storage_emulator'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed', allow_module_level=True)
  # Before gcsfs is imported, which would look for credentials.
  os.environ |= servers.environment('gs', 1)


class Store:
  """The objects of one emulator."""

  def __init__(self, scheme, environment):
    from lora_opt.buckets.paths import filesystem

    os.environ |= environment
    self.root = f'{scheme}://{servers.BUCKET}'
    self.store = filesystem(self.root)

  def read(self, name):
    return self.store.cat_file(f'{self.root}/{name}')

  def put(self, name, data):
    self.store.pipe_file(f'{self.root}/{name}', data)

  def remove(self, name):
    self.store.rm(f'{self.root}/{name}', recursive=True)

  def copy(self, folder, other):
    for name in self.names(folder):
      self.put(f'{other}/{name}', self.read(f'{folder}/{name}'))

  def names(self, folder):
    prefix = f'{servers.BUCKET}/{folder}/'
    found = self.store.find(f'{self.root}/{folder}')
    return {name.removeprefix(prefix) for name in found}
