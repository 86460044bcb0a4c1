"""One owner of a MODEL_DIR, whatever became of the one before."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lora_opt.training import run_lock
from lora_opt.training.run_lock import RunLock

HOLD = """
import pathlib, sys, time
from lora_opt.training.run_lock import RunLock
with RunLock(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the folder."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def write_owner(folder, number=1, **changes):
  owner = run_lock._this_process() | changes
  (folder / 'lock').mkdir(exist_ok=True)
  path = folder / f'lock/{number:04}.json'
  path.write_text(json.dumps(owner))
  return path


def acquired(folder, **settings):
  with RunLock(folder, **settings) as lock:
    lock.check()
    (path,) = folder.glob('lock/*')
  return path.name


def test_the_second_is_told_who_is_there_and_what_to_do(tmp_path, holder):
  with pytest.raises(OSError, match=f'process {holder.pid} on .*since') as told:
    RunLock(tmp_path).acquire()
  assert str(tmp_path) in str(told.value)
  assert re.search(rf'kill {holder.pid}.*choose another', str(told.value))


def test_a_killed_owner_is_replaced_at_once(tmp_path, holder):
  holder.send_signal(signal.SIGKILL)
  started = time.monotonic()
  # Not yet waited for: its number is still taken, by what is dead.
  while run_lock._start_of(holder.pid):
    time.sleep(0.01)
  assert acquired(tmp_path) == '0002.json'
  assert time.monotonic() - started < 20


def test_one_that_ended_leaves_nothing_to_wait_for(tmp_path):
  assert [acquired(tmp_path) for _ in range(3)] == [
    '0001.json',
    '0002.json',
    '0003.json',
  ]


def test_another_process_of_that_number_is_another(tmp_path):
  write_owner(tmp_path, started='1')
  assert acquired(tmp_path) == '0002.json'


def test_another_machine_is_waited_for_and_taken_over(tmp_path, capsys):
  write_owner(tmp_path, host='other', system='boot', since='yesterday')
  started = time.monotonic()
  assert acquired(tmp_path, beat=0.2, silence=1.0) == '0002.json'
  assert time.monotonic() - started > 0.9
  said = capsys.readouterr().out
  assert "'other'" in said and 'no sign of life' in said


def test_another_machine_that_lives_is_not(tmp_path):
  path = write_owner(tmp_path, host='other', system='boot')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_lock.time, 'sleep', lambda _: os.utime(path))
    with pytest.raises(OSError, match="on 'other'"):
      RunLock(tmp_path, beat=0.2, silence=5.0).acquire()


def test_old_signs_of_life_need_no_wait(tmp_path):
  path = write_owner(tmp_path, host='other', system='boot')
  os.utime(path, (0, 0))
  started = time.monotonic()
  assert acquired(tmp_path) == '0002.json'
  assert time.monotonic() - started < 20


def test_a_job_of_slurm_replaces_its_earlier_start(tmp_path, monkeypatch):
  write_owner(tmp_path, system='boot', job='7', cluster='c', restarts=0)
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  monkeypatch.setenv('SLURM_CLUSTER_NAME', 'c')
  monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
  assert acquired(tmp_path) == '0002.json'


@pytest.mark.parametrize('text', ['', '{"host"', '[]', '\udcff', '{"pid": {}}'])
def test_what_is_damaged_is_gone_when_it_is_old(tmp_path, text):
  path = write_owner(tmp_path)
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  os.utime(path, (0, 0))
  assert acquired(tmp_path) == '0002.json'


def test_of_several_only_one_gets_it(tmp_path):
  """Eleven at once, over a dead owner; those that come late see it held.

  One may read the file of the winner before it is written. It waits for a sign
  of life, and may have the lock when the winner has ended.
  """
  path = write_owner(tmp_path, started='1')
  code = (
    'import pathlib, sys, time\n'
    'from lora_opt.training.run_lock import RunLock\n'
    'import os\n'
    'folder = pathlib.Path(sys.argv[1])\n'
    'for _ in range(10):\n'
    '  child = os.fork()\n'
    '  if not child: break\n'
    'while time.time() < float(sys.argv[2]): pass\n'
    'try:\n'
    '  RunLock(folder).acquire()\n'
    '  os.write(1, b"got %f\\n" % time.time()); time.sleep(5)\n'
    'except OSError: os.write(1, b"no\\n")\n'
    'if child:\n'
    '  for _ in range(10): os.wait()\n'
    'os._exit(0)\n'
  )
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path),
     str(time.time() + 3)],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  lines = done.stdout.splitlines()
  got = sorted(float(x.split()[1]) for x in lines if x.startswith('got'))
  assert got and len(got) + lines.count('no') == 11, done
  assert all(later - sooner >= 5 for sooner, later in itertools.pairwise(got))
  assert not path.exists()


def test_an_owner_that_was_taken_over_stops(tmp_path):
  with RunLock(tmp_path, beat=0.05) as lock:
    write_owner(tmp_path, 2, pid=1, host='other')
    wait_for_trouble(lock, "taken over by process 1 on 'other'")


def test_an_owner_whose_folder_is_gone_stops(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  with RunLock(folder, beat=0.05) as lock:
    folder.rename(tmp_path / 'elsewhere')
    (folder / 'checkpoints').mkdir(parents=True)  # a save under way
    wait_for_trouble(lock, 'run was removed')


def wait_for_trouble(lock, said):
  deadline = time.monotonic() + 20
  with pytest.raises(OSError, match=said):
    while time.monotonic() < deadline:
      lock.check()
      time.sleep(0.01)
