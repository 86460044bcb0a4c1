"""Trackers against their real packages, without a network, read back.

`bash launch/test.sh --integrations trackers` installs them and runs these.
"""

import collections
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from lora_opt.evaluation.history import read_metrics
from lora_opt.training import stopping, trackers
from lora_opt.training.metrics import MetricWriter
from lora_opt.training.trackers import wandb_files
from lora_opt.training.trackers.following import abandoned, following

ROOT = pathlib.Path(__file__).parents[2]
# These packages and what they need warn of each other's versions.
pytestmark = pytest.mark.filterwarnings('ignore')


def wandb_rows(folder):
  """Rows, settings and exit codes of all offline starts in MODEL_DIR."""
  rows, settings, codes, ids = [], {}, [], set()
  for path in sorted(folder.glob('wandb/offline-run-*/run-*.wandb')):
    for record in wandb_files.records(path):
      if record.HasField('history'):
        row = wandb_files.row_of(record)
        rows.append({name: json.loads(text) for name, text in row.items()})
      if record.HasField('run'):
        ids.add(record.run.run_id)
        settings |= {
          item.key: json.loads(item.value_json)
          for item in record.run.config.update
        }
      if record.HasField('exit'):
        codes.append(record.exit.exit_code)
  return rows, settings, codes, ids


def by_metric(rows, step='_step'):
  """metric -> its (step, value) in order."""
  found = collections.defaultdict(list)
  for row in rows:
    for name, value in row.items():
      if '/' in name:
        found[name].append((row[step], value))
  return found


def mlflow_rows(uri, known):
  mlflow = pytest.importorskip('mlflow')
  client = mlflow.MlflowClient(tracking_uri=uri)
  run = client.get_run(known)
  found = {
    name: [(m.step, m.value) for m in client.get_metric_history(known, name)]
    for name in run.data.metrics
  }
  return found, run


def trackio_rows(project, name):
  trackio = pytest.importorskip('trackio')
  (run,) = [r for r in trackio.Api().runs(project) if r.name == name]
  rows = trackio.SQLiteStorage.get_logs(project, name, run_id=run.id)
  return by_metric(rows, 'step'), run.config


def known(folder, name):
  return json.loads((folder / 'trackers.json').read_text())[name]['id']


@pytest.fixture
def places(tmp_path, monkeypatch):
  """Where each keeps its runs: in a folder of the test."""
  monkeypatch.setenv('WANDB_DIR', str(tmp_path / 'elsewhere'))
  monkeypatch.setenv('WANDB_API_KEY', '')
  monkeypatch.setenv('NETRC', str(tmp_path / 'none'))
  monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
  return tmp_path


def run(folder, make, *, steps, done=0, error=None):
  """A start of a run: steps after `done`, and what ends it."""
  with (
    following(folder, [make()], {'RATE': '2e-4', 'LONG': 'x' * 7000}) as told,
    MetricWriter(folder, told.wake) as writer,
  ):
    writer.rewind(done)
    for step in range(done + 1, steps + 1):
      lost = math.nan if step == 2 else 1.0
      writer.write(step, 'train', {'loss': 1 / step, 'strange@1': lost})
      if step % 2 == 0:
        writer.write(step, 'eval', {'loss': 2 / step})
    if error:  # a stop waits less long than some take to begin
      wait_until_sent(folder, steps)
      raise error


def wait_until_sent(folder, step):
  path = folder / 'trackers.json'
  for _ in range(1200):
    if path.exists() and f'"train": {step}' in path.read_text():
      return
    time.sleep(0.1)


def stop_and_resume(folder, make):
  """Told to stop after step 5, of which step 3 was the last that was saved."""
  folder.mkdir()
  with pytest.raises(stopping.Stopped):
    run(folder, make, steps=5, error=stopping.Stopped())
  first = json.loads((folder / 'trackers.json').read_text())
  run(folder, make, steps=8, done=3)
  second = json.loads((folder / 'trackers.json').read_text())
  assert [e['id'] for e in first.values()] == [e['id'] for e in second.values()]
  assert not {f'tracker {name}' for name in first} & set(abandoned())


LOSSES = [(step, 1 / step) for step in range(1, 9)]
EVAL_LOSSES = [(step, 2 / step) for step in (2, 4, 6, 8)]


def test_wandb(places, capsys):
  wandb = pytest.importorskip('wandb')
  folder = places / 'run'
  stop_and_resume(folder, lambda: trackers.Wandb('p', mode='offline'))
  wandb.teardown()  # as the end of a program does: what it holds is written
  rows, settings, codes, ids = wandb_rows(folder)
  metrics = by_metric(rows)
  assert metrics['train/loss'] == LOSSES
  assert metrics['eval/loss'] == EVAL_LOSSES
  strange = dict(metrics['train/strange@1'])
  assert strange[1] == 1.0 and math.isnan(strange[2])
  assert settings['RATE'] == 2e-4 and settings['LONG'] == 'x' * 7000
  # 75 is what a run ends with that is to go on.
  assert codes == [75, 0] and ids == {known(folder, 'wandb')}
  assert 'warning' not in capsys.readouterr().out


def test_wandb_without_a_key_warns_and_does_not_ask(places, capsys):
  wandb = pytest.importorskip('wandb')
  wandb.teardown()
  (places / 'run').mkdir()
  run(places / 'run', trackers.Wandb, steps=2)
  out = capsys.readouterr().out
  assert out.count('warning: wandb: ') == 1 and 'wandb login' in out
  assert len(read_metrics(places / 'run')) == 3


def test_mlflow(places, capsys):
  pytest.importorskip('mlflow')
  uri = f'sqlite:///{places}/m.db'
  folder = places / 'run'
  stop_and_resume(folder, lambda: trackers.Mlflow('e', uri=uri))
  found, seen = mlflow_rows(uri, known(folder, 'mlflow'))
  assert found['train/loss'] == LOSSES and found['eval/loss'] == EVAL_LOSSES
  strange = dict(found['train/strange_1'])
  assert strange[1] == 1.0 and math.isnan(strange[2])
  assert seen.data.params['RATE'] == '0.0002'
  assert len(seen.data.params['LONG']) == 6000
  assert (seen.info.run_name, seen.info.status) == ('run', 'FINISHED')
  assert 'warning' not in capsys.readouterr().out


def test_mlflow_is_not_sent_what_it_has_but_our_record_lacks(places):
  pytest.importorskip('mlflow')
  uri = f'sqlite:///{places}/m.db'
  folder = places / 'run'
  folder.mkdir()
  run(folder, lambda: trackers.Mlflow('e', uri=uri), steps=4)
  record = json.loads((folder / 'trackers.json').read_text())
  record['mlflow']['sent'] = {'train': 2}  # killed before it was noted
  (folder / 'trackers.json').write_text(json.dumps(record))
  run(folder, lambda: trackers.Mlflow('e', uri=uri), steps=8, done=4)
  found, _ = mlflow_rows(uri, known(folder, 'mlflow'))
  assert found['train/loss'] == LOSSES and found['eval/loss'] == EVAL_LOSSES


def test_trackio(places, capsys):
  trackio = pytest.importorskip('trackio')
  project = f'p{os.getpid()}'
  folder = places / 'run'
  try:
    stop_and_resume(folder, lambda: trackers.Trackio(project))
    found, settings = trackio_rows(project, known(folder, 'trackio'))
  finally:
    trackio.delete_project(project, force=True)
  assert found['train/loss'] == LOSSES and found['eval/loss'] == EVAL_LOSSES
  strange = dict(found['train/strange@1'])
  assert strange[1] == 1.0 and math.isnan(float(strange[2]))
  assert settings['RATE'] == 2e-4
  assert 'warning' not in capsys.readouterr().out


COMMAND = [
  *(sys.executable, '-m', 'lora_opt.main', '--run_mode=train'),
  '--gin_file=configs/runs/finetune.gin',
  '--gin_file=configs/models/random.gin',
  '--gin_file=configs/lora/all_linear.gin',
  '--gin_file=configs/optimizers/lora_plus.gin',
  '--gin_file=configs/tasks/word_sequence_reversal.gin',
  '--gin.models.random_model.num_layers=1',
  '--gin.EVAL_EXAMPLES=4',
  '--gin.MAX_NEW_TOKENS=4',
  '--gin.BATCH_SIZE=2',
]
# Trackers take seconds to begin, and a step takes milliseconds.
STEPS, PERIOD = 2000, 200


def start(folder, chosen, *more, environment):
  return subprocess.Popen(
    [*COMMAND, f'--gin.MODEL_DIR={folder}', f'--gin.TRACKERS={chosen}', *more],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_a_run_that_was_killed_is_told_whole_to_all_of_them(tmp_path):
  """From the command line: kill -9 between two checkpoints, and once more."""
  pytest.importorskip('wandb')
  pytest.importorskip('trackio')
  mlflow = pytest.importorskip('mlflow')
  folder = tmp_path / 'run'
  environment = {
    'MLFLOW_TRACKING_URI': f'sqlite:///{tmp_path}/m.db',
    'TRACKIO_DIR': str(tmp_path / 'trackio'),
  }
  chosen = '[@trackers.Wandb(), @trackers.Mlflow(), @trackers.Trackio()]'
  settings = (
    '--gin.trackers.Wandb.mode=offline',
    f'--gin.TRAIN_STEPS={STEPS}',
    f'--gin.EVAL_PERIOD={STEPS // 2}',
    f'--gin.CHECKPOINT_PERIOD={PERIOD}',
  )
  # MLflow makes its file in many small steps, and does not go on where it was
  # killed among them.
  mlflow.MlflowClient(environment['MLFLOW_TRACKING_URI']).search_experiments()
  process = start(folder, chosen, *settings, environment=environment)
  while process.poll() is None:
    path = folder / 'trackers.json'
    sent = json.loads(path.read_text()) if path.exists() else {}
    steps = [entry['sent'].get('train', 0) for entry in sent.values()]
    saved = (folder / f'checkpoints/step_{PERIOD}').exists()
    if saved and len(steps) == 3 and all(PERIOD < n < STEPS for n in steps):
      process.send_signal(signal.SIGKILL)
    time.sleep(0.02)
  assert process.returncode == -signal.SIGKILL, process.communicate()[0]
  process = start(folder, chosen, *settings, environment=environment)
  out = process.communicate()[0]
  assert process.returncode == 0, out
  assert 'Going on from step' in out
  assert not re.search('warning: (wandb|mlflow|trackio)', out), out
  expected = [
    (row['step'], row['loss'])
    for row in read_metrics(folder)
    if row['split'] == 'train'
  ]
  assert [step for step, _ in expected] == list(range(1, STEPS + 1))

  rows, settings, codes, _ = wandb_rows(folder)
  found = by_metric(rows)
  check(found, expected, folder)
  assert settings['BATCH_SIZE'] == 2 and codes[-1] == 0
  found, seen = mlflow_rows(
    environment['MLFLOW_TRACKING_URI'], known(folder, 'mlflow')
  )
  check(found, expected, folder)
  assert seen.data.params['BATCH_SIZE'] == '2'
  code = (
    'import json; from tests.integrations import trackers_test as t;'
    f'print("=" + json.dumps(t.trackio_rows("lora_opt", '
    f'{known(folder, "trackio")!r})))'
  )
  read = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  found, settings = json.loads(read.stdout.partition('=')[2])
  check({n: list(map(tuple, v)) for n, v in found.items()}, expected, folder)
  assert settings['BATCH_SIZE'] == 2


def check(found, expected, folder):
  """Each step once, as in metrics.jsonl, and the three kinds of evaluation."""
  assert found['train/loss'] == expected
  for moment, step in (('before', 0), ('after', STEPS)):
    path = folder / f'evaluation/{moment}.json'
    loss = json.loads(path.read_text())['loss']
    assert found[f'{moment}/loss'] == [(step, loss)]
  assert [step for step, _ in found['eval/loss']] == [STEPS // 2]


def test_a_server_that_does_not_answer_does_not_keep_a_run(tmp_path):
  """wandb online, with a key, and nobody at its address."""
  pytest.importorskip('wandb')
  folder = tmp_path / 'run'
  process = start(
    folder,
    '[@trackers.Wandb()]',
    '--gin.trackers.Wandb.patience=5.0',
    '--gin.TRAIN_STEPS=6',
    environment={
      'WANDB_API_KEY': '0' * 40,
      'WANDB_BASE_URL': 'http://127.0.0.1:9',
    },
  )
  out = process.communicate(timeout=600)[0]
  assert process.returncode == 0, out
  assert 'warning: wandb: ' in out and (folder / 'adapter').is_dir()
