"""An error of a save is told once, not per thread; other errors are told."""

import os
import subprocess
import sys

import pytest

LATE_CALLBACK = """
import asyncio, os, sys
import tensorstore
from lora_opt.training import told_once

async def wait(future):
  await future

if sys.argv[1] == 'once':
  told_once.tell_once()
loop = asyncio.new_event_loop()
promise, future = tensorstore.Promise.new()
waiting = loop.create_task(wait(future))
loop.call_soon(loop.stop)
loop.run_forever()
loop.close()
promise.set_result(1)  # calls back to the closed loop
future.add_done_callback(lambda _: 1 / 0)
os._exit(0)
"""

CODE = """
import os, pathlib, resource, sys
import jax.numpy as jnp
from lora_opt.training import told_once
from lora_opt.training.checkpointing import Checkpoints
from lora_opt.training.train_state import TrainState

class Batches:
  def get_state(self):
    return {}

told_once.tell_once()
try:
  with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    state = TrainState(jnp.int32(1), {'a': jnp.ones(1000)}, {})
    checkpoints.save(state, Batches())
except (OSError, ValueError) as error:
  print('raised', error, flush=True)
os._exit(0)  # as `main` does
"""


@pytest.mark.slow
def test_libraries_do_not_log_what_they_raise(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', CODE, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=600,
    # Nothing half written is to stay in the folder of compiled programs.
    env=os.environ | {'JAX_ENABLE_COMPILATION_CACHE': 'false'},
  )
  assert 'raised' in done.stdout and 'File too large' in done.stdout, done
  assert 'Traceback' not in done.stderr, done.stderr
  assert len(done.stderr.splitlines()) < 5, done.stderr


@pytest.mark.slow
def test_late_callbacks_are_quiet_and_other_errors_are_not():
  def stderr_of(argument):
    done = subprocess.run(
      [sys.executable, '-c', LATE_CALLBACK, argument],
      capture_output=True,
      text=True,
      timeout=600,
    )
    return done.stderr

  assert 'Event loop is closed' in stderr_of('thread by thread')
  once = stderr_of('once')
  assert 'Event loop is closed' not in once, once
  assert 'ZeroDivisionError' in once, once
