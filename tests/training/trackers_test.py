"""Trackers that work, fail, hang, are late and come back: the run goes on."""

import json
import math
import threading
import time

import pytest

from lora_opt.training import stopping
from lora_opt.training.metrics import MetricWriter
from lora_opt.training.trackers import (
  Begun,
  Wandb,
  following,
  tracker,
  wandb_files,
)


class Fake:
  """Keeps what it is told; `failing` are exceptions of its next calls."""

  def __init__(self, name='fake', failing=(), project='p', has=None, at_once=1):
    self.name, self.patience, self.at_once = name, 5.0, at_once
    self.failing, self._project, self._has = list(failing), project, has
    self.runs, self.rows, self.sizes, self.statuses = [], [], [], []
    self.gate = threading.Event()
    self.gate.set()

  def place(self):
    return {'project': self._project}

  def begin(self, run):
    self._call()
    self.runs.append(run)
    return Begun(run.id or 'id1', 'seen there', self._has or run.sent)

  def log(self, rows):
    self._call()
    self.sizes.append(len(rows))
    self.rows += [(row.split, row.step, dict(row.scalars)) for row in rows]

  def finish(self, status):
    self._call()
    self.statuses.append(status)

  def _call(self):
    self.gate.wait()
    if self.failing and (error := self.failing.pop(0)) is not None:
      raise error

  def steps(self, split='train'):
    return [step for name, step, _ in self.rows if name == split]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
  monkeypatch.setattr(following, '_RETRY', 0.05)
  monkeypatch.setattr(following, '_SAID_AFTER', 0.1)
  monkeypatch.setattr(following, '_ending', [])


def run(folder, *trackers, steps, done=0, error=None, pause=0.0):
  """A start of a run: steps after `done`, and what ends it."""
  folder.mkdir(exist_ok=True)
  with (
    following.following(folder, trackers, {}) as told,
    MetricWriter(folder, told.wake) as writer,
  ):
    writer.rewind(done)
    for step in range(done + 1, steps + 1):
      writer.write(step, 'train', {'loss': 1 / step})
    time.sleep(pause)
    if error:
      raise error


def evaluated(folder, moment, step, loss):
  scores = {'bleu': {'score': 0.5, 'interval': [0.4, 0.6]}}
  result = {'loss': loss, 'step': step, 'metrics': scores}
  path = folder / 'evaluation' / f'{moment}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result))


def test_every_row_comes_once_with_evaluations_and_settings(tmp_path, capsys):
  evaluated(tmp_path, 'before', 0, 2.0)
  fake = Fake()
  settings = {'RATE': '2e-4', 'NAME': "'a'", 'LORA': '@m()', 'N': 3}
  with (
    following.following(tmp_path, [fake], settings) as told,
    MetricWriter(tmp_path, told.wake) as writer,
  ):
    writer.rewind(0)
    writer.write(1, 'train', {'loss': 1.0, 'grad_norm': math.inf})
    writer.write(1, 'eval', {'loss': 3.0})
    writer.write(2, 'train', {'loss': 0.5, 'grad_norm': 1.0})
    evaluated(tmp_path, 'after', 2, 1.0)
  assert [(split, step) for split, step, _ in fake.rows] == [
    ('before', 0),
    ('train', 1),
    ('eval', 1),
    ('train', 2),
    ('after', 2),
  ]
  assert fake.rows[0][2] == {'loss': 2.0, 'bleu': 0.5}
  assert fake.rows[1][2]['loss'] == 1.0
  assert math.isnan(fake.rows[1][2]['grad_norm'])
  (told_of,) = fake.runs
  assert told_of.name == tmp_path.name and told_of.id is None
  assert told_of.settings == {
    'RATE': 2e-4,
    'NAME': 'a',
    'LORA': '@m()',
    'N': 3,
  }
  assert fake.statuses == ['finished']
  assert capsys.readouterr().out == 'fake: seen there\n'


def test_a_resumed_run_goes_on_in_the_same_one_without_a_step_twice(tmp_path):
  first, second = Fake(), Fake()
  with pytest.raises(stopping.Stopped):
    run(tmp_path, first, steps=5, error=stopping.Stopped())
  # The newest checkpoint was that of step 3.
  run(tmp_path, second, steps=8, done=3)
  assert first.steps() + second.steps() == list(range(1, 9))
  assert second.runs[0].id == 'id1' and second.runs[0].sent == {'train': 5}
  assert (first.statuses, second.statuses) == (['stopped'], ['finished'])


def test_what_the_tracker_says_it_has_comes_before_our_record(tmp_path):
  run(tmp_path, Fake(), steps=5)
  fake = Fake(has={'train': 2})  # the rest was lost on the way
  run(tmp_path, fake, steps=6, done=5)
  assert fake.steps() == [3, 4, 5, 6]


def test_one_that_is_added_or_moved_later_gets_the_earlier_steps(tmp_path):
  run(tmp_path, Fake(), steps=2)
  added, moved = Fake('added'), Fake(project='q')
  run(tmp_path, added, moved, steps=4, done=2)
  assert added.steps() == moved.steps() == [1, 2, 3, 4]
  assert moved.runs[0].id is None
  assert set(json.loads((tmp_path / 'trackers.json').read_text())) == {
    'added',
    'fake',
  }


@pytest.mark.parametrize(
  'failing',
  [
    [ValueError('not logged in')],
    [None, OSError('no route\nto host'), OSError('still')],
    [SystemExit('a library that ends the program')],
  ],
)
def test_one_that_fails_is_told_again_and_warned_of_once(
  tmp_path, capsys, failing
):
  fake, well = Fake(failing=failing), Fake('well')
  run(tmp_path, fake, well, steps=3, pause=0.5)
  assert well.steps() == fake.steps() == [1, 2, 3]
  out = capsys.readouterr().out
  assert out.count('warning: fake: ') == 1
  assert 'fake: it has all now' in out


def test_one_that_always_fails_changes_nothing(tmp_path, capsys):
  fake = Fake(failing=[ValueError('refused')] * 1000)
  run(tmp_path, fake, steps=3)
  assert fake.rows == [] and following.abandoned() == ()
  out = capsys.readouterr().out
  assert out.count('warning') == 1 and 'ValueError: refused' in out
  late = Fake()
  run(tmp_path, late, steps=3, done=3)
  assert late.steps() == [1, 2, 3]


def test_one_that_hangs_is_left(tmp_path, capsys):
  fake = Fake()
  fake.patience = 0.3
  fake.gate.clear()
  start = time.monotonic()
  run(tmp_path, fake, steps=3)
  assert time.monotonic() - start < 3
  assert following.abandoned() == ('tracker fake',)
  out = capsys.readouterr().out
  assert 'fake: waiting for it' in out and 'does not answer' in out
  fake.gate.set()


def test_a_slow_one_does_not_slow_the_run(tmp_path):
  fake = Fake()
  fake.gate.clear()
  start = time.monotonic()
  with (
    following.following(tmp_path, [fake], {}) as told,
    MetricWriter(tmp_path, told.wake) as writer,
  ):
    for step in range(1, 101):
      writer.write(step, 'train', {'loss': 1.0})
    seconds = time.monotonic() - start
    fake.gate.set()
  assert seconds < 2
  assert fake.steps() == list(range(1, 101))


def test_one_that_takes_many_rows_at_once_gets_each_once(tmp_path):
  fake = Fake(failing=[None, None, OSError('busy')], at_once=3)
  evaluated(tmp_path, 'before', 0, 2.0)
  fake.gate.clear()
  folder = tmp_path
  with (
    following.following(folder, [fake], {}) as told,
    MetricWriter(folder, told.wake) as writer,
  ):
    writer.rewind(0)
    for step in range(1, 8):
      writer.write(step, 'train', {'loss': 1 / step})
      writer.write(step, 'eval', {'loss': 2 / step})
    fake.gate.set()
    time.sleep(0.5)
  assert fake.steps() == fake.steps('eval') == list(range(1, 8))
  assert fake.steps('before') == [0] and fake.sizes == [3] * 5


def test_the_record_follows_one_that_lags(tmp_path, monkeypatch):
  monkeypatch.setattr(following, '_NOTE', 0.0)
  noted = []

  class Lagging(Fake):
    def log(self, rows):
      record = json.loads((tmp_path / 'trackers.json').read_text())
      noted.append(record['fake']['sent'].get('train', 0))
      super().log(rows)

  run(tmp_path, Fake('other'), steps=5)
  run(tmp_path, Lagging(), steps=5, done=5)
  assert noted == [0, 1, 2, 3, 4]


def test_an_error_of_the_run_is_told(tmp_path):
  fake = Fake()
  with pytest.raises(ValueError, match='diverged'):
    run(tmp_path, fake, steps=1, error=ValueError('diverged'))
  assert fake.statuses == ['failed'] and fake.steps() == [1]


@pytest.mark.parametrize('text', ['{', '[]', '{"fake": 1}', '{"fake": {}}'])
def test_a_damaged_record_is_said(tmp_path, capsys, text):
  (tmp_path / 'trackers.json').write_text(text)
  fake = Fake()
  run(tmp_path, fake, steps=1)
  if text == '{"fake": {}}':  # a run of no place that is known
    assert fake.steps() == [1]
  else:
    assert 'trackers.json' in capsys.readouterr().out and not fake.rows


def test_the_same_tracker_twice_is_refused(tmp_path):
  with (
    pytest.raises(ValueError, match='TRACKERS has fake more than once'),
    following.following(tmp_path, [Fake(), Fake()], {}),
  ):
    pass


def log_of(texts):
  """Records as LevelDB writes them, in parts where a block ends."""
  data = bytearray(7)
  for text in texts:
    first = True
    while True:
      room = 32768 - len(data) % 32768
      if room < 7:
        data += bytes(room)
        continue
      part, text = text[: room - 7], text[room - 7 :]
      kind = {(1, 0): 1, (1, 1): 2, (0, 1): 3, (0, 0): 4}[first, bool(text)]
      data += bytes(4) + len(part).to_bytes(2, 'little') + bytes([kind]) + part
      first = False
      if not text:
        break
  return bytes(data)


def test_of_a_log_that_is_cut_off_whole_records_are_read():
  texts = [b'a' * 10, b'b' * 32740, b'c' * 70000, b'd']
  data = log_of(texts)
  ends = [len(log_of(texts[:n])) for n in range(1, 5)]
  assert list(wandb_files.parts(data)) == texts
  for cut in {0, 5, 8, *ends, *(end - 1 for end in ends), 40000, 70000}:
    whole = sum(end <= cut for end in ends)
    assert list(wandb_files.parts(data[:cut])) == texts[:whole]


def test_a_missing_package_is_named_with_its_extra():
  with pytest.raises(ValueError, match=r"pip install 'lora_opt\[some\]'"):
    tracker.load('no_such_package', extra='some')


def test_a_broken_package_is_named(tmp_path, monkeypatch):
  (tmp_path / 'broken_package.py').write_text('import no_such_thing')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match='cannot be imported .ModuleNotFound'):
    tracker.load('broken_package', extra='some')


def test_a_mode_that_is_none_is_named():
  with pytest.raises(ValueError, match="Wandb.mode='of': expected one of"):
    Wandb(mode='of')
