"""What is said of long steps: on a terminal, in a log, and by no one twice."""

import io
import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from lora_opt import progress


@pytest.fixture
def soon(monkeypatch):
  """The first line of a log comes at once, the next ones after 0.1 s."""
  monkeypatch.setattr(progress, '_FIRST_LINE', 0.05)
  monkeypatch.setattr(progress, '_NEXT_LINES', 0.1)


def lines_after(stream, count):
  for _ in range(200):
    if len(stream.getvalue().splitlines()) >= count:
      break
    time.sleep(0.02)
  return stream.getvalue().splitlines()


def test_what_is_quick_leaves_nothing_in_a_log():
  stream = io.StringIO()
  with progress.Bar('reading', 3, stream=stream) as bar:
    bar.update()
  with progress.waiting('compiling', 30.0, stream=stream):
    pass
  assert stream.getvalue() == ''


def test_a_log_gets_whole_lines_also_while_nothing_moves(soon):
  stream = io.StringIO()
  with progress.Bar('reading', 4, stream=stream) as bar:
    lines_after(stream, 1)
    bar.update(2)
    lines_after(stream, 2)
    bar.to(4)
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'reading: 0/4, 0 s so far'
  assert any(
    line.startswith('reading: 2/4, 0 s so far, 0 s l') for line in lines
  )
  assert lines[-1] == 'reading: 4/4, 0 s so far'
  assert '\r' not in stream.getvalue()


def test_bytes_have_their_units(soon):
  stream = io.StringIO()
  with progress.Bar('reading', 5_000_000_000, unit='B', stream=stream) as bar:
    bar.update(1_500_000_000)
    (line, *_) = lines_after(stream, 1)
  assert line.startswith('reading: 1.50GB/5.00GB, ')


def test_waiting_says_how_long_it_took_last_time_and_now(soon):
  stream = io.StringIO()
  with progress.waiting('compiling', 30.0, stream=stream):
    lines_after(stream, 1)
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'compiling: 0 s (30 s last time)'
  assert lines[-1] == 'compiling: done in 0 s'


def test_what_fails_is_not_said_to_be_done(soon):
  stream = io.StringIO()
  with (
    pytest.raises(ValueError, match='no'),
    progress.waiting('compiling', stream=stream),
  ):
    lines_after(stream, 1)
    raise ValueError('no')
  assert 'done' not in stream.getvalue()


def test_who_is_muted_says_nothing(soon, monkeypatch):
  monkeypatch.setattr(progress, '_muted', False)
  progress.mute()
  stream = io.StringIO()
  with (
    progress.Bar('a', 1, stream=stream),
    progress.waiting('b', stream=stream),
  ):
    time.sleep(0.2)
  assert stream.getvalue() == ''


def test_names_of_strangers_cannot_move_the_cursor(soon):
  stream = io.StringIO()
  with progress.waiting('reading \x1b[2Ja\nb', stream=stream):
    (line, *_) = lines_after(stream, 1)
  assert line == r'reading \x1b[2Ja\x0ab: 0 s'


SHOW = """
import time
from lora_opt import progress
progress._SHOWN_AFTER, progress._TICK = 0.0, 0.05
with progress.waiting('compiling the training step', 30.0):
  time.sleep(0.5)
with progress.Bar('reading', 4_000_000, unit='B') as bar:
  for _ in range(4):
    time.sleep(0.15)
    bar.update(1_000_000)
with progress.waiting('downloading', on_terminal=False):
  time.sleep(0.2)
print('the end')
"""


def test_a_terminal_sees_a_moving_line_that_goes():
  own, its = pty.openpty()
  termios.tcsetwinsize(its, (24, 80))
  process = subprocess.Popen(
    [sys.executable, '-c', SHOW], stdout=its, stderr=its, stdin=its
  )
  os.close(its)
  said = b''
  while True:
    try:
      part = os.read(own, 4096)
    except OSError:  # how Linux says that the other end is closed
      break
    if not part:
      break
    said += part
  os.close(own)
  assert process.wait() == 0
  text = said.decode()
  assert 'compiling the training step: 0 s (30 s last time)' in text
  assert '2.00M/4.00M' in text and 'downloading' not in text
  # What stays on the screen: each line as its last carriage return left it.
  *_, last = text.rstrip('\r\n').split('\r')
  assert last.strip() == 'the end'
  assert text.count('\n') == 1
