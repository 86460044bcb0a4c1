"""The command line as a user meets it, in processes of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

from lora_opt.main import explain

QUICKSTART = '--gin_file=configs/runs/quickstart.gin'


def run(*flags, **where):
  return subprocess.run(
    [sys.executable, '-m', 'lora_opt.main', *flags],
    **where,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_dry_run_prints_the_configuration():
  done = run(QUICKSTART, '--dry_run', '--gin.TRAIN_STEPS=7')
  assert done.returncode == 0, done.stderr
  assert 'TRAIN_STEPS = 7' in done.stdout
  assert 'OPTIMIZER = @lora_opt.lora_rite()' in done.stdout


def test_a_start_imports_nothing_slow_before_it_is_needed():
  """Each of these takes from a tenth of a second to two."""
  code = (
    'import contextlib, io, sys\n'
    'from lora_opt import main\n'
    f"sys.argv = ['main', '{QUICKSTART}', '--dry_run']\n"
    'with contextlib.suppress(SystemExit):\n'
    '  with contextlib.redirect_stdout(io.StringIO()):\n'
    '    main.run()\n'
    "slow = {'torch', 'matplotlib', 'scipy', 'tensorboardX', 'transformers',\n"
    "  'huggingface_hub', 'tensorflow', 'sklearn', 'pyarrow'}\n"
    'sys.exit(str(slow & set(sys.modules)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
  )
  assert done.stderr.splitlines()[-1] == 'set()', done.stderr


def test_configs_are_found_from_another_folder(tmp_path):
  project = str(pathlib.Path(__file__).parents[1])
  environment = os.environ | {'PYTHONPATH': project}
  done = run(QUICKSTART, '--dry_run', cwd=tmp_path, env=environment)
  assert done.returncode == 0, done.stderr
  assert 'OPTIMIZER = @lora_opt.lora_rite()' in done.stdout


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ((QUICKSTART, '--gin.TRIAN_STEPS=3'), 'Did you mean TRAIN_STEPS?'),
    (
      ('--gin_file=configs/runs/finetune.gin',),
      'required and not set: MODEL, MODEL_DIR, OPTIMIZER',
    ),
    ((), '--gin_file'),
  ],
)
def test_a_mistake_is_one_message_and_no_traceback(flags, expected):
  done = run(*flags)
  assert done.returncode == 1
  assert expected in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr
  assert len(done.stderr.splitlines()) < 25


def test_help_names_the_flags():
  done = run('--helpshort')
  for flag in ('--run_mode', '--gin_file', '--[no]dry_run', '--process_count'):
    assert flag in done.stdout


@pytest.mark.parametrize(
  'trouble', ['No space left on device', 'Disk quota exceeded']
)
def test_a_disk_that_takes_no_more_is_a_few_lines(trouble):
  error = RuntimeError(f'OUT_OF_RANGE: {trouble}\n' + 300 * 'in a library\n')
  said = explain(error)
  assert trouble in said and 'run the same command again' in said
  assert len(said.splitlines()) < 5
