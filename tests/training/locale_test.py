"""A run where the locale knows nothing but ASCII."""

import os
import subprocess
import sys

import pytest

from tests.training.launching import FLAGS

ASCII = {
  'LC_ALL': 'C',
  'PYTHONCOERCECLOCALE': '0',
  'PYTHONIOENCODING': 'ascii',
  'PYTHONUTF8': '0',
}


@pytest.mark.long
def test_a_run_writes_utf_8_and_prints_what_it_can(tmp_path):
  # In a file: such a locale does not say what letters of a flag are.
  name = tmp_path / 'name.gin'
  name.write_text(
    'from __gin__ import dynamic_registration\n'
    'from lora_opt.data import tasks\n'
    "tasks.Generation.name = 'é'\n",
    encoding='utf-8',
  )
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'lora_opt.main', *FLAGS),
      *('--gin.TRAIN_STEPS=1', f'--gin.MODEL_DIR={tmp_path}/run'),
      f'--gin_file={name}',
    ],
    env=os.environ | ASCII,
    capture_output=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr.decode('ascii', 'replace')
  assert b'Score' in done.stdout
  config = (tmp_path / 'run/config.gin').read_text(encoding='utf-8')
  assert 'é' in config
  assert (tmp_path / 'run/report.html').exists()
