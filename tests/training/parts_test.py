"""What a configuration gives in place of a model or a task."""

import pathlib
import subprocess
import sys

import pytest

from lora_opt.models import random_model
from lora_opt.reading import parts
from lora_opt.training import run_lock

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('value', [3, 'gemma', None, [1]])
def test_what_is_no_model_or_task_is_named(value):
  with pytest.raises(ValueError, match=r'^MODEL=.* is not a model: give'):
    parts.check(model=value)
  with pytest.raises(ValueError, match=r'^TASK=.* is not a task: give'):
    parts.check(model=random_model(), task=value)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['train', 'eval', 'merge'])
def test_on_the_command_line_it_is_one_line(mode, tmp_path):
  run = subprocess.run(
    [
      *(sys.executable, '-m', 'lora_opt.main', f'--run_mode={mode}'),
      '--gin_file=configs/runs/finetune.gin',
      '--gin_file=configs/models/random.gin',
      '--gin_file=configs/lora/all_linear.gin',
      '--gin_file=configs/optimizers/adamw.gin',
      '--gin_file=configs/tasks/word_sequence_reversal.gin',
      *('--gin.MODEL=3', f'--gin.MODEL_DIR={tmp_path / "run"}'),
      *('--gin.TRAIN_STEPS=1', '--gin.PEAK_LEARNING_RATE=0.001'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 1
  assert 'error: MODEL=3 is not a model' in run.stderr
  assert 'Traceback' not in run.stderr


def test_a_count_of_restarts_that_is_none_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv('SLURM_RESTART_COUNT', 'x')
  with (
    pytest.raises(ValueError, match="SLURM_RESTART_COUNT='x' is not a whole"),
    run_lock.hold(tmp_path),
  ):
    pass
