"""Local processes: logs, signals, the first failure; and a real run."""

import signal
import subprocess
import sys
import time

import pytest

from lora_opt.evaluation.history import read_metrics
from tests.launch.launcher import (
  FOREVER,
  LAUNCH,
  fake_python,
  launch,
  output,
  wait_for,
)
from tests.training.launching import FLAGS


@pytest.mark.parametrize(
  'name', ['processes.py', 'gke.py', 'sweep.py', 'checks.py', 'gpu_check.py']
)
def test_examples_in_docstrings(name):
  subprocess.run(
    [sys.executable, '-m', 'doctest', LAUNCH / name], cwd=LAUNCH, check=True
  )


def test_every_process_has_a_log_and_the_first_speaks(tmp_path):
  python = fake_python(tmp_path, 'echo "I am $last"')
  said = output(
    'processes.py', '--processes=3', MODEL_DIR=str(tmp_path), PYTHON=python
  )
  assert said == 'I am --process_index=0\n'
  for index in range(3):
    log = tmp_path / f'logs/process_{index}.log'
    assert log.read_text() == f'I am --process_index={index}\n'


def test_the_first_failure_ends_all(tmp_path):
  python = fake_python(
    tmp_path, '[ "$last" != --process_index=1 ] || exit 3\n' + FOREVER
  )
  started = time.monotonic()
  run = launch(
    *('processes.py', '--grace_seconds=0.2'),
    MODEL_DIR=str(tmp_path),
    PYTHON=python,
  )
  assert time.monotonic() - started < 10
  assert run.returncode == 3
  assert 'process 1 ended first, with exit code 3' in run.stderr


def test_sigterm_is_passed_on_to_all(tmp_path):
  python = fake_python(
    tmp_path,
    'touch "$MODEL_DIR/ready$last"\n' + FOREVER,
    'touch "$MODEL_DIR/saved$last"; exit 75',
  )
  run = launch(
    'processes.py', MODEL_DIR=str(tmp_path), PYTHON=python, wait=False
  )
  wait_for(*(tmp_path / f'ready--process_index={i}' for i in range(2)))
  run.send_signal(signal.SIGTERM)
  assert run.wait(10) == 75
  assert len(list(tmp_path.glob('saved*'))) == 2


@pytest.mark.parametrize(
  'flag',
  ['--processes=0', '--devices=-1', '--port=70000', '--grace_seconds=nan'],
)
def test_numbers_are_checked(tmp_path, flag):
  run = launch('processes.py', flag, MODEL_DIR=str(tmp_path))
  assert run.returncode == 2
  assert 'expected a' in run.stderr


def test_a_log_that_is_a_link_is_not_written_to(tmp_path):
  (tmp_path / 'logs').mkdir()
  (tmp_path / 'logs/process_0.log').symlink_to(tmp_path / 'elsewhere')
  run = launch('processes.py', MODEL_DIR=str(tmp_path), PYTHON='true')
  assert run.returncode == 2
  assert 'process_0.log is a link' in run.stderr
  assert not (tmp_path / 'elsewhere').exists()


@pytest.mark.long
def test_two_real_processes_train(tmp_path):
  folder = tmp_path / 'run'
  said = output(
    *('processes.py', '--devices=1', '--'),
    *(*FLAGS, '--gin.TRAIN_STEPS=2'),
    MODEL_DIR=str(folder),
    PYTHON=sys.executable,
  )
  rows = [row for row in read_metrics(folder) if row['split'] == 'train']
  assert [row['step'] for row in rows] == [1, 2]
  assert (folder / 'run.json').exists()
  assert str(folder / 'adapter') in said
