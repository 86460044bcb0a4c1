"""The command line, stopped or robbed of its folder while it is at work.

Whatever it was doing, it ends with one sentence and an exit status that says
what to do next, and the same command comes to the same end afterwards.
"""

import os
import pathlib
import random
import re
import shutil
import signal
import time

import pytest

from lora_opt.training.stopping import EXIT
from tests.training.launching import Run, steps_logged

pytestmark = pytest.mark.slow

CACHE = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
TRAIN = ('--gin.TRAIN_STEPS=12', '--gin.CHECKPOINT_PERIOD=5')
ADAPTER = 'adapter/adapter_model.safetensors'
LONG = pytest.mark.long
# A user should not have to look for the sentence that matters.
MOST_LINES = 6


def start(folder: pathlib.Path, *flags: str) -> Run:
  return Run(folder, *TRAIN, *flags, cache=CACHE)


def one_sentence(run: Run) -> None:
  text = run.text()
  assert 'Traceback' not in text, text
  end = re.split('error: |Stopped by', text)[-1]
  assert len(end.splitlines()) <= MOST_LINES, text


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A finished run, and the seconds that it took."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  start(folder).finish()  # fills the compilation cache
  shutil.rmtree(folder)
  began = time.monotonic()
  start(folder).finish()
  return folder, time.monotonic() - began


def moments(count: int, few: int) -> list:
  return [pytest.param(i, marks=() if i < few else LONG) for i in range(count)]


@pytest.mark.parametrize('seed', moments(30, few=0))
def test_a_signal_at_any_moment_of_training(tmp_path, whole, seed):
  """From the first import to the last file of the report."""
  finished, seconds = whole
  rng = random.Random(seed)
  folder = tmp_path / 'run'
  run = start(folder)
  time.sleep(seconds * rng.uniform(0.3, 1.0))
  run.processes[0].send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
  (code,) = run.wait(timeout=120)
  # A run that was at its very end has come to it.
  assert code == EXIT or (code == 0 and (folder / ADAPTER).exists()), run.text()
  one_sentence(run)
  assert start(folder).finish() == (finished / ADAPTER).read_bytes()


@pytest.mark.parametrize(
  ('mode', 'seed'),
  [
    pytest.param(mode, i, marks=LONG)
    for mode in ('eval', 'infer', 'merge')
    for i in range(6)
  ],
)
def test_a_signal_at_any_moment_of_what_follows(tmp_path, whole, mode, seed):
  """Nothing is left by half, and the command brings the rest again."""
  finished, _ = whole
  rng = random.Random(f'{mode} {seed}')
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  before = files_of(folder)
  began = time.monotonic()
  start(folder, f'--run_mode={mode}').finish()
  seconds = time.monotonic() - began
  made = files_of(folder) - before
  assert made

  shutil.rmtree(folder)
  shutil.copytree(finished, folder)
  run = start(folder, f'--run_mode={mode}')
  time.sleep(seconds * rng.uniform(0.5, 1.0))
  run.processes[0].send_signal(signal.SIGINT)
  (code,) = run.wait(timeout=120)
  assert code in (EXIT, 0), run.text()
  one_sentence(run)
  if code == 0:
    assert files_of(folder) - before == made
    return
  start(folder, f'--run_mode={mode}').finish()
  assert files_of(folder) - before == made


def files_of(folder: pathlib.Path) -> set[str]:
  return {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}


@LONG
@pytest.mark.parametrize('at', [2, 7])
def test_a_folder_that_is_gone_is_said_in_a_sentence(tmp_path, at):
  folder = tmp_path / 'run'
  run = start(folder, '--gin.TRAIN_STEPS=2000')
  deadline = time.monotonic() + 180
  while steps_logged(folder) < at:
    assert run.processes[0].poll() is None, run.text()
    assert time.monotonic() < deadline
    time.sleep(0.001)
  folder.rename(tmp_path / 'elsewhere')
  (code,) = run.wait(timeout=120)
  text = run.text()
  assert code == 1, text
  assert f'error: MODEL_DIR={folder} was removed' in text, text
  one_sentence(run)
