"""Signals at any time: one exit status, and nothing lost but what is asked."""

import signal
import subprocess
import sys

import pytest

from lora_opt.training.stopping import EXIT

CODE = """
import sys, time
from lora_opt.training import stopping
with stopping.Stops() as stops:
  if sys.argv[1] == 'alone':
    print('ready', flush=True)
    time.sleep(60)
  with stops.later():
    print('ready', flush=True)
    while not (stops.asked and sys.argv[1] == 'step'):
      time.sleep(0.01)
    time.sleep(0.3)
    print('saved', flush=True)
  stops.heed()
print('went on')
"""


# A signal comes while garbage is collected, where what is raised is lost.
IN_VAIN = """
import gc, os, signal, sys, time
from lora_opt.training import stopping
def strike(phase, info):
  gc.callbacks.remove(strike)
  os.kill(os.getpid(), getattr(signal, sys.argv[1]))
  time.sleep(0.1)
gc.callbacks.append(strike)
with stopping.Stops():
  print('ready', flush=True)
  gc.collect()
  time.sleep(10)
print('went on')
"""


@pytest.mark.parametrize('number', ['SIGTERM', 'SIGINT'])
def test_a_signal_within_a_callback_that_cannot_raise(number):
  process = start(number, IN_VAIN)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out) == (EXIT, ''), err
  assert err.strip() == f'Stopped by {number}; run again to go on.'


def start(phase, code=CODE):
  process = subprocess.Popen(
    [sys.executable, '-c', code, phase],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
  ('phase', 'said'), [('alone', ''), ('step', 'saved\n')]
)
def test_one_signal(phase, said, number):
  process = start(phase)
  process.send_signal(number)
  out, err = process.communicate(timeout=60)
  assert process.returncode == EXIT, err
  assert out == said and 'Traceback' not in err


def test_sigterm_twice_is_one_request():
  process = start('step')
  for _ in range(2):
    process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out) == (EXIT, 'saved\n'), err


def test_a_second_ctrl_c_stops_now():
  process = start('never done')
  process.send_signal(signal.SIGINT)
  assert process.stderr.readline() == '\n'  # it has heard
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(1.5)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out) == (EXIT, ''), err
  assert 'Stopped at once' in err and 'Traceback' not in err
