"""Runs in buckets that are killed, and the same command again.

In processes of their own; `launch/test.sh --integrations buckets` runs it.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.buckets.stores import check_installed
from tests.training.launching import FLAGS

check_installed()

STEPS = 30
CACHE = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
ADAPTER = 'adapter/adapter_model.safetensors'


def start(folder):
  command = [sys.executable, '-m', 'lora_opt.main', *FLAGS]
  command += [f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={STEPS}']
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(CACHE),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  return subprocess.Popen(
    [*command, '--gin.CHECKPOINT_PERIOD=7'],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env=environment,
  )


def finish(process):
  said = process.communicate(timeout=1200)[0].decode()
  assert process.returncode == 0, said
  return said


@pytest.fixture(scope='module')
def adapter(tmp_path_factory):
  """That of a run on a disk, which nobody interrupts."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  finish(start(folder))
  return (folder / ADAPTER).read_bytes()


def kill_when(process, happened):
  """Kills a run the moment something holds, of which it is told by polling."""
  deadline = time.monotonic() + 600
  try:
    while time.monotonic() < deadline:
      assert process.poll() is None, process.communicate()[0].decode()
      if happened():
        process.send_signal(signal.SIGSTOP)
        if happened():
          return
        process.send_signal(signal.SIGCONT)
      time.sleep(0.002)
    raise AssertionError('the moment never came')
  finally:
    process.kill()
    process.communicate()


@pytest.mark.parametrize('moment', ['after a save', 'in a save'])
def test_killed_it_goes_on_bit_for_bit(bucket, adapter, moment):
  folder = moment.replace(' ', '_')
  whole, mark = moment == 'after a save', 'commit_success.txt'
  step = 'step_7' if whole else 'step_14'

  def happened():
    names = bucket.names(f'{folder}/checkpoints/{step}')
    return (mark in names) if whole else names and mark not in names

  kill_when(start(f'{bucket.root}/{folder}'), happened)
  assert ADAPTER not in bucket.names(folder)
  said = finish(start(f'{bucket.root}/{folder}'))
  assert 'Going on from step ' + ('' if whole else '7') in said
  assert 'damaged' not in said
  assert bucket.read(f'{folder}/{ADAPTER}') == adapter
  logged = bucket.read(f'{folder}/metrics.jsonl').splitlines()
  assert [json.loads(r)['step'] for r in logged] == [*range(1, STEPS + 1)]
