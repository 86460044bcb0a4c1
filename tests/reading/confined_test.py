import os
import pickle
import subprocess
import sys
import time
import warnings

import pytest

from lora_opt.reading import confined
from lora_opt.reading.confined import Confined, ConfinedError

WORK = """
import os, sys, time
def work(what, value=None):
  if what == 'echo': return value
  if what == 'bytes': return b'x' * value
  if what == 'raise': raise KeyError(value)
  if what == 'print': print('between the replies'); return 1
  if what == 'memory': return len(bytearray(value))
  if what == 'loop':
    while True: pass
  if what == 'wait': time.sleep(value); return value
  if what == 'crash': os.abort()
  if what == 'exit': sys.exit(3)
  if what == 'jax': return 'jax' in sys.modules
  if what == 'threads':
    import ctypes, threading
    malloc, gate = ctypes.CDLL(None).malloc, threading.Barrier(value)
    def one():
      malloc(64)
      gate.wait()
    threads = [threading.Thread(target=one) for _ in range(value)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return value
"""


@pytest.fixture
def work(tmp_path):
  (tmp_path / 'work.py').write_text(WORK)
  confined = Confined(tmp_path / 'work.py', 'work', seconds=1, memory=2**28)
  yield confined
  confined.close()


def test_values_go_in_and_out(work):
  value = {'a': [1, 'é', None], 'b': 'x' * 10**6}
  assert work('echo', value) == value
  assert work('bytes', 10**6) == b'x' * 10**6
  assert work('print') == 1
  assert work('jax') is False


@pytest.mark.parametrize(
  ('what', 'value', 'reason'),
  [
    ('raise', 'k', "KeyError: 'k'"),
    ('memory', 2**30, 'more than 256 MiB'),
    ('loop', None, 'more than 1 seconds'),
    ('crash', None, 'SIGABRT'),
    ('exit', None, 'status 3'),
  ],
)
def test_whatever_happens_there_is_an_error_and_the_next_call_works(
  work, what, value, reason
):
  start = time.monotonic()
  with pytest.raises(ConfinedError, match=reason):
    work(what, value)
  assert time.monotonic() - start < 20
  assert work('echo', 3) == 3


def test_threads_of_a_large_machine_leave_memory_for_the_work(tmp_path):
  """32 stacks of 8 MiB are half of it; an arena for each would be 2 GiB."""
  (tmp_path / 'work.py').write_text(WORK)
  work = Confined(tmp_path / 'work.py', 'work', memory=2**29 + 2**27)
  try:
    assert work('threads', 32) == 32
    assert work('memory', 2**27) == 2**27
  finally:
    work.close()


DEAF = """
import signal, sys
from lora_opt.reading.confined import Confined
signal.signal(signal.SIGPROF, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
try:
  Confined(sys.argv[1], 'work', seconds=1)('loop')
except ValueError as error:
  print(error)
"""


def test_who_is_deaf_to_the_signal_is_no_example(tmp_path):
  """What is done to a signal is handed down to the processes one starts.

  In a process of its own: libtpu may have a use for the signal in this one.
  """
  (tmp_path / 'work.py').write_text(WORK)
  done = subprocess.run(
    [sys.executable, '-c', DEAF, str(tmp_path / 'work.py')],
    capture_output=True,
    text=True,
  )
  assert done.stdout == 'took more than 1 seconds\n', done.stderr


def test_waiting_for_others_is_no_work(work):
  assert work('wait', 2) == 2  # one second of the processor is allowed


def test_what_waits_for_ever_is_ended(work, monkeypatch):
  # Of the ten times one second that a call may take by the clock.
  monkeypatch.setattr(confined, '_PATIENCE', -8)
  with pytest.raises(ConfinedError, match='more than 2 seconds'):
    work('wait', 60)
  assert work('echo', 3) == 3


def test_a_start_that_takes_too_long_is_not_blamed_on_the_work(
  tmp_path, monkeypatch
):
  (tmp_path / 'work.py').write_text('import time\ntime.sleep(60)')
  monkeypatch.setattr(confined, '_START_SECONDS', 0.5)
  slow = Confined(tmp_path / 'work.py', 'work', seconds=60)
  with pytest.raises(ConfinedError, match='the start took more than 0.5 sec'):
    slow()


def test_a_copy_elsewhere_has_a_process_of_its_own(work):
  work('echo', 1)
  copy = pickle.loads(pickle.dumps(work))
  assert copy('echo', 2) == 2
  copy.close()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # jax's, where it is at work
    child = os.fork()
  if not child:
    os._exit(work('echo', 5) != 5)
  assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
  assert work('echo', 4) == 4
