"""Runs in buckets that are killed, and the same command again.

In processes of their own; `launch/test.sh --integrations buckets` runs it.
"""

import json
import os
import pathlib
import signal
import time

import pytest

from tests.buckets.stores import check_installed
from tests.training.launching import Run

check_installed()

STEPS = 30
CACHE = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
ADAPTER = 'adapter/adapter_model.safetensors'
MARK = 'commit_success.txt'


def start(folder, processes, place=None):
  """A run in a place of a bucket, or in the folder; its logs lie beside that.

  Two processes have two devices each.
  """
  return Run(
    folder,
    f'--gin.TRAIN_STEPS={STEPS}',
    '--gin.CHECKPOINT_PERIOD=7',
    processes=processes,
    devices=processes,
    cache=CACHE,
    bucket=place,
  )


@pytest.fixture(scope='module')
def adapters(tmp_path_factory):
  """By numbers of processes, that of a run on a disk nobody interrupts."""
  found = {}

  def adapter(processes):
    if processes not in found:
      folder = tmp_path_factory.mktemp('whole') / 'run'
      found[processes] = start(folder, processes).finish()
    return found[processes]

  return adapter


def kill_when(run, index, happened):
  """Kills a process the moment something holds, of which polling tells.

  It is not held first: in the middle of a request it would hold the emulator.
  """
  deadline = time.monotonic() + 600
  process = run.processes[index]
  try:
    while not happened():
      assert process.poll() is None, run.text()
      assert time.monotonic() < deadline, f'it never came to it: {run.text()}'
      time.sleep(0.002)
  finally:
    process.kill()
    codes = run.wait(timeout=120)
  assert codes[index] == -signal.SIGKILL and all(codes), run.text()
  assert happened(), 'it was too fast'


@pytest.mark.parametrize(
  ('moment', 'processes', 'index'),
  [
    ('after a save', 1, 0),
    ('in a save', 1, 0),
    ('after a save', 2, 0),
    ('in a save', 2, 1),
  ],
)
def test_killed_it_goes_on_bit_for_bit(
  bucket, adapters, tmp_path, moment, processes, index
):
  """If it is one of two processes, the other one ends too."""
  if processes > 1 and bucket.root.startswith('s3'):
    pytest.skip('several processes on s3:// are refused: see run_test')
  folder = f'{moment.replace(" ", "_")}_of_{processes}'
  place = f'{bucket.root}/{folder}'
  whole = moment == 'after a save'
  step = 'step_7' if whole else 'step_14'

  def happened():
    names = bucket.names(f'{folder}/checkpoints/{step}')
    return (MARK in names) if whole else names and MARK not in names

  kill_when(start(tmp_path / 'killed', processes, place), index, happened)
  assert ADAPTER not in bucket.names(folder)
  run = start(tmp_path / 'again', processes, place)
  run.end_well()
  assert 'Going on from step ' + ('' if whole else '7') in run.text()
  assert 'damaged' not in run.text()
  assert bucket.read(f'{folder}/{ADAPTER}') == adapters(processes)
  logged = bucket.read(f'{folder}/metrics.jsonl').splitlines()
  assert [json.loads(r)['step'] for r in logged] == [*range(1, STEPS + 1)]
