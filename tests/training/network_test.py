"""The processes of a run listen where they were told to, and nowhere else."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from lora_opt.training import network
from tests.training.launching import free_port

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.skipif(
  not os.path.exists('/proc/net/tcp'), reason='needs Linux to look'
)
def test_local_processes_listen_at_the_loopback_address_alone():
  address = f'localhost:{free_port()}'
  running = [
    subprocess.Popen(
      [sys.executable, '-m', 'tests.training.listening_program', address, i],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      encoding='utf-8',
    )
    for i in '01'
  ]
  said = [process.communicate(timeout=120)[1] for process in running]
  for text in said:
    found = re.findall(r'^[\d.:]+(?: [\d.:]+)*$', text, re.M)
    assert found, text
    assert set(found[-1].split()) <= {'127.0.0.1', '::1'}, text


def test_what_is_named_is_where_it_listens(monkeypatch):
  monkeypatch.delenv('JAX_COORDINATOR_BIND_ADDRESS', raising=False)
  assert network.bind_address('127.0.0.1:80') == '127.0.0.1:80'
  assert network.bind_address(None) is None
  # An address for documents, which no machine has.
  assert network.bind_address('203.0.113.7:80') is None
  monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', '[::]:80')
  assert network.bind_address('127.0.0.1:80') is None


@pytest.mark.parametrize(
  'address', ['localhost', ':80', 'a:', 'a:0', 'a:70000', 'a:8O', 'a:²']
)
def test_what_is_no_address_is_named(address):
  with pytest.raises(ValueError, match='--coordinator_address='):
    network.bind_address(address)
