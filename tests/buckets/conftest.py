"""An emulator for each kind of bucket."""

import os

import pytest

from tests.buckets import servers
from tests.buckets.stores import Store


# One for all modules: what talks to them is kept as long as the process.
@pytest.fixture(scope='session', params=['gs', 's3'])
def bucket(request, tmp_path_factory):
  """An emulator that this process and those that it starts talk to."""
  folder = tmp_path_factory.mktemp(request.param)
  os.environ['LORA_OPT_BUCKET_CACHE'] = str(folder / 'cache')
  with servers.serve(request.param, folder / 'server.log') as environment:
    yield Store(request.param, environment)
