"""A few faults of the harness; `python -m tests.faults` injects many."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.long
def test_ten_faults_lose_nothing():
  done = subprocess.run(
    [sys.executable, '-m', 'tests.faults', '--count=10', '--seed=1'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert '10 faults, all survived' in done.stdout
  assert int(re.search(r'(\d+) runs ended', done.stdout)[1]) >= 1
