import io
import json
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from lora_opt.evaluation import history
from lora_opt.training import metrics


def lines(model_dir):
  text = (model_dir / history.METRICS_FILE).read_text()
  return [json.loads(line) for line in text.splitlines()]


def events(folder):
  """All events of a folder, in the order TensorBoard reads them."""
  found = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def scalars(folder):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(folder)
    for value in event.summary.value
  ]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_writes_one_line_a_call(tmp_path):
  with metrics.MetricWriter(tmp_path / 'new' / 'run') as writer:
    writer.write(1, 'train', {'loss': np.float32(2.5), 'grad_norm': 1})
    # Before close: a killed run keeps what it logged.
    (row,) = lines(tmp_path / 'new' / 'run')
    writer.write(np.int64(2), 'eval', {'loss': np.ones(())})
  assert row.pop('time') > 1e9
  assert row == {'step': 1, 'split': 'train', 'loss': 2.5, 'grad_norm': 1.0}
  assert lines(tmp_path / 'new' / 'run')[1]['split'] == 'eval'


def test_not_finite_is_null(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.write(1, 'train', {'loss': float('nan'), 'grad_norm': np.inf})
  (row,) = lines(tmp_path)
  assert row['loss'] is None and row['grad_norm'] is None


def test_reserved_name_is_refused(tmp_path):
  with (
    metrics.MetricWriter(tmp_path) as writer,
    pytest.raises(ValueError, match=r"\['time'\]"),
  ):
    writer.write(1, 'train', {'time': 1.0})


def test_appends_after_a_half_line(tmp_path):
  path = tmp_path / history.METRICS_FILE
  path.write_text('{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2, "s')
  with metrics.MetricWriter(tmp_path) as writer:
    writer.write(2, 'train', {'loss': 0.5})
  assert [row['loss'] for row in lines(tmp_path)] == [1.0, 0.5]


def test_rewind(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    for step in range(1, 6):
      writer.write(step, 'train', {'loss': float(step)})
    writer.write(4, 'eval', {'loss': 4.0})
  with metrics.MetricWriter(tmp_path) as writer:
    writer.rewind(3)
    writer.write(4, 'train', {'loss': 40.0})
  assert [row['loss'] for row in lines(tmp_path)] == [1.0, 2.0, 3.0, 40.0]
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    history.METRICS_FILE,
    'tensorboard',
  ]
  train = tmp_path / 'tensorboard' / 'train'
  assert len(list(train.iterdir())) == 2
  # TensorBoard hides events from the step of this mark on.
  marks = [e.step for e in events(train) if e.HasField('session_log')]
  assert marks == [4]
  assert scalars(train)[-1] == (4, 'loss', 40.0)


def test_rewind_of_a_new_run(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.rewind(0)
    writer.write(1, 'train', {'loss': 1.0})
  assert len(lines(tmp_path)) == 1


def test_tensorboard_events(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.write(3, 'train', {'loss': 0.5, 'timing/steps_per_second': 2.0})
    writer.write(3, 'eval', {'accuracy': 0.25})
  assert scalars(tmp_path / 'tensorboard' / 'train') == [
    (3, 'loss', 0.5),
    (3, 'timing/steps_per_second', 2.0),
  ]
  assert scalars(tmp_path / 'tensorboard' / 'eval') == [(3, 'accuracy', 0.25)]


def test_read_metrics(tmp_path):
  assert history.read_metrics(tmp_path) == []
  (tmp_path / history.METRICS_FILE).write_text(
    '{"step": 2, "split": "train", "loss": 2.0}\n'
    '{"step": 1, "split": "train", "loss": 1.0}\n'
    'not json\n[1, 2]\n{"split": "train"}\n\n'
    '{"step": 2, "split": "eval", "loss": 3.0}\n'
    '{"step": 2, "split": "train", "loss": 20.0}\n'
    '{"step": 3, "split": "tra'
  )
  rows = history.read_metrics(tmp_path)
  assert [(r['step'], r['split'], r['loss']) for r in rows] == [
    (1, 'train', 1.0),
    (2, 'train', 20.0),
    (2, 'eval', 3.0),
  ]


def test_progress_in_a_log_file_is_plain():
  stream = io.StringIO()
  with metrics.ProgressBar(100, interval=1e6, stream=stream) as bar:
    for step in range(1, 101):
      bar.update(
        step,
        {
          'loss': 1.0 / step,
          'learning_rate': 2e-4,
          'timing/tokens_per_second': 12345.6,
          'timing/steps_per_second': 1.0,
        },
      )
  first, last = stream.getvalue().splitlines()
  assert first == (
    'step 1/100, loss 1.0000, lr 2.00e-04, 12,346 tokens/s, 01:39 left'
  )
  assert last.startswith('step 100/100, loss 0.0100')
  assert stream.getvalue().replace('\n', '').isprintable()


def test_progress_without_speeds_keeps_the_last_scalars():
  stream = io.StringIO()
  bar = metrics.ProgressBar(10, 5, interval=0.0, stream=stream)
  bar.update(5)
  bar.update(6, {'loss': 2.0})
  bar.update(7)
  assert stream.getvalue().splitlines()[0] == 'step 5/10'
  assert stream.getvalue().count('loss 2.0000') == 2


def test_progress_on_a_terminal():
  stream = Terminal()
  with metrics.ProgressBar(4, 1, stream=stream) as bar:
    bar.update(2, {'loss': 3.0})
    bar.print('evaluating')
    bar.update(4)
  assert '4/4' in stream.getvalue() and 'loss 3.0000' in stream.getvalue()
  assert 'evaluating\n' in stream.getvalue()
