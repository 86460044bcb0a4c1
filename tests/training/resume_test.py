"""Killed at any moment and started again: the same adapter, bit for bit."""

import json
import os
import pathlib
import signal
import time

import pytest

from lora_opt.training.stopping import EXIT
from tests.training.launching import Run, steps_logged

pytestmark = pytest.mark.slow

STEPS = 30
ADAPTER = 'adapter/adapter_model.safetensors'
# What one run compiled serves the others, or most of the time would go there.
CACHE = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])


def start(folder: pathlib.Path, period: int) -> Run:
  steps, saves = f'TRAIN_STEPS={STEPS}', f'CHECKPOINT_PERIOD={period}'
  return Run(folder, f'--gin.{steps}', f'--gin.{saves}', cache=CACHE)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  return start(tmp_path_factory.mktemp('whole') / 'run', period=7).finish()


def wait_for(run, happened):
  """Stops the process the moment something holds, and looks again."""
  (process,) = run.processes
  deadline = time.monotonic() + 180
  while time.monotonic() < deadline:
    assert process.poll() is None, 'the run ended before it could be killed'
    if happened():
      process.send_signal(signal.SIGSTOP)
      if happened():
        return process
      process.send_signal(signal.SIGCONT)
    time.sleep(0.0005)
  process.kill()
  raise AssertionError('the moment never came')


def half_saved(folder):
  return list((folder / 'checkpoints').glob('*orbax-checkpoint-tmp*'))


@pytest.mark.parametrize(
  'step',
  [
    pytest.param(1, marks=pytest.mark.long),
    9,
    pytest.param(23, marks=pytest.mark.long),
  ],
)
def test_killed_at_a_step(tmp_path, uninterrupted, step):
  folder = tmp_path / 'run'
  run = start(folder, period=7)
  process = wait_for(run, lambda: steps_logged(folder) >= step)
  process.kill()
  process.wait()
  assert not (folder / ADAPTER).exists()
  assert start(folder, period=7).finish() == uninterrupted
  rows = (folder / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(row)['step'] for row in rows]
  assert steps == list(range(1, STEPS + 1))  # no step twice, none missing


@pytest.mark.long
@pytest.mark.parametrize('saves_before', [0, 2])
def test_killed_in_the_middle_of_a_save(tmp_path, uninterrupted, saves_before):
  folder = tmp_path / 'run'
  run = start(folder, period=1)

  def later_save_under_way():
    done = list((folder / 'checkpoints').glob('step_*[0-9]'))
    return half_saved(folder) and len(done) >= saves_before

  process = wait_for(run, later_save_under_way)
  process.kill()
  process.wait()
  assert half_saved(folder)
  assert start(folder, period=1).finish() == uninterrupted
  assert not half_saved(folder)


@pytest.mark.long
def test_sigterm_saves_and_says_how_to_go_on(tmp_path, uninterrupted):
  folder = tmp_path / 'run'
  run = start(folder, period=1000)
  process = wait_for(run, lambda: steps_logged(folder) >= 4)
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGCONT)
  assert process.wait(timeout=120) == EXIT
  assert 'Stopped by SIGTERM after step' in run.text()
  (saved,) = (folder / 'checkpoints').iterdir()
  assert 4 <= int(saved.name.removeprefix('step_')) < STEPS
  assert start(folder, period=1000).finish() == uninterrupted
