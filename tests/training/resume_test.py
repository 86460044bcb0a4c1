"""Killed at any moment and started again: the same adapter, bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

STEPS = 30
FLAGS = [
  '--gin_file=configs/runs/finetune.gin',
  '--gin_file=configs/models/random.gin',
  '--gin_file=configs/lora/all_linear.gin',
  '--gin_file=configs/tasks/word_sequence_reversal.gin',
  '--gin_file=configs/optimizers/lora_rite.gin',
  f'--gin.TRAIN_STEPS={STEPS}',
  '--gin.BATCH_SIZE=2',
  '--gin.TRAIN_EXAMPLES=50',
  '--gin.EVAL_EXAMPLES=4',
  '--gin.MAX_NEW_TOKENS=4',
  '--gin.LORA_RANK=2',
  '--gin.DROPOUT_RATE=0.1',
  '--gin.models.random_model.num_layers=1',
  "--gin.models.random_model.remat='none'",
]
ADAPTER = 'adapter/adapter_model.safetensors'


def start(folder: pathlib.Path, cache: pathlib.Path, period: int):
  command = [sys.executable, '-m', 'lora_opt.main', *FLAGS]
  command += [f'--gin.MODEL_DIR={folder}', f'--gin.CHECKPOINT_PERIOD={period}']
  # The runs share compiled programs, or most of the time would go there.
  sharing = {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  with log_of(folder).open('a') as log:
    return subprocess.Popen(
      command, stdout=log, stderr=log, env=os.environ | sharing
    )


def log_of(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_suffix('.log')


def finish(folder, cache, period):
  status = start(folder, cache, period).wait(timeout=180)
  assert status == 0, log_of(folder).read_text()
  return (folder / ADAPTER).read_bytes()


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, cache):
  return finish(tmp_path_factory.mktemp('whole') / 'run', cache, period=7)


def wait_for(process, happened):
  """Stops the process the moment something holds, and looks again."""
  deadline = time.monotonic() + 180
  while time.monotonic() < deadline:
    assert process.poll() is None, 'the run ended before it could be killed'
    if happened():
      process.send_signal(signal.SIGSTOP)
      if happened():
        return
      process.send_signal(signal.SIGCONT)
    time.sleep(0.0005)
  process.kill()
  raise AssertionError('the moment never came')


def steps_logged(folder):
  path = folder / 'metrics.jsonl'
  return path.read_text().count('"train"') if path.exists() else 0


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
def test_killed_at_a_step(tmp_path, cache, uninterrupted, step):
  folder = tmp_path / 'run'
  process = start(folder, cache, period=7)
  wait_for(process, lambda: steps_logged(folder) >= step)
  process.kill()
  process.wait()
  assert not (folder / ADAPTER).exists()
  assert finish(folder, cache, period=7) == uninterrupted
  rows = (folder / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(row)['step'] for row in rows]
  assert steps == list(range(1, STEPS + 1))  # no step twice, none missing


@pytest.mark.parametrize('saves_before', [0, 2])
def test_killed_in_the_middle_of_a_save(
  tmp_path, cache, uninterrupted, saves_before
):
  folder = tmp_path / 'run'
  process = start(folder, cache, period=1)

  def later_save_under_way():
    done = list((folder / 'checkpoints').glob('step_*[0-9]'))
    return half_saved(folder) and len(done) >= saves_before

  wait_for(process, later_save_under_way)
  process.kill()
  process.wait()
  assert half_saved(folder)
  assert finish(folder, cache, period=1) == uninterrupted
  assert not half_saved(folder)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, cache, uninterrupted):
  folder = tmp_path / 'run'
  process = start(folder, cache, period=1000)
  wait_for(process, lambda: steps_logged(folder) >= 4)
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGCONT)
  assert process.wait(timeout=120) == 0
  assert 'Stopped by SIGTERM after step' in log_of(folder).read_text()
  (saved,) = (folder / 'checkpoints').iterdir()
  assert 4 <= int(saved.name.removeprefix('step_')) < STEPS
  assert finish(folder, cache, period=1000) == uninterrupted
