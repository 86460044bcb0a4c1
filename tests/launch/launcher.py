"""Runs launchers, with a stand-in for the Python that would train."""

import os
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
# Settings of whoever runs the tests that would change what is launched.
_SETTINGS = {'MODEL_DIR', 'PYTHON', 'SWEEP', 'TPU', 'ZONE', 'PROJECT'}
_SETTINGS |= {'XLA_FLAGS', 'SLURM_ARRAY_TASK_ID', 'PLATFORM'}


def launch(
  name: str, *arguments: str, wait: bool = True, **settings: str
) -> subprocess.CompletedProcess | subprocess.Popen:
  """Starts launch/NAME with these environment variables."""
  program = 'bash' if name.endswith('.sh') else sys.executable
  environment = {k: v for k, v in os.environ.items() if k not in _SETTINGS}
  process = subprocess.Popen(
    [program, LAUNCH / name, *arguments],
    env=environment | settings,
    cwd=ROOT,
    stdout=subprocess.PIPE if wait else subprocess.DEVNULL,
    stderr=subprocess.PIPE if wait else subprocess.DEVNULL,
    encoding='utf-8',
  )
  if not wait:
    return process
  try:
    out, error = process.communicate(timeout=300)
  except subprocess.TimeoutExpired:
    process.terminate()  # which the launchers pass on
    raise
  return subprocess.CompletedProcess(name, process.returncode, out, error)


def output(name: str, *arguments: str, **settings: str) -> str:
  """What a launcher that ends well says."""
  run = launch(name, *arguments, **settings)
  assert run.returncode == 0, run.stdout + run.stderr
  return run.stdout


def fake_python(
  folder: pathlib.Path, body: str, on_sigterm: str | None = None
) -> str:
  """A program in Python's place: notes its arguments, then runs `body`.

  Args:
    folder: it is written there.
    body: of a shell script; $last is the last argument.
    on_sigterm: what to do then; without it, the signal ends the program.
  """
  path = folder / 'fake_python'
  trap = f'trap {shlex.quote(on_sigterm)} TERM\n' if on_sigterm else ''
  path.write_text(
    '#!/usr/bin/env bash\n'
    'last=${!#}\n'
    'mkdir -p "$MODEL_DIR"\n'
    # Whoever sees the note may send the signal.
    + trap
    + 'printf "%s\\n" "$@" > "$MODEL_DIR/arguments.$$"\n'
    'mv "$MODEL_DIR/arguments.$$" "$MODEL_DIR/arguments.txt"\n' + f'{body}\n',
    encoding='utf-8',
  )
  path.chmod(0o755)
  return str(path)


def wait_for(*paths: pathlib.Path) -> None:
  deadline = time.monotonic() + 10
  while not all(path.exists() for path in paths):
    assert time.monotonic() < deadline, paths
    time.sleep(0.02)


# A body that only a signal ends.
FOREVER = 'for _ in {1..600}; do sleep 0.05; done; exit 9'
