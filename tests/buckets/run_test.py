"""Whole runs with MODEL_DIR and DATA_DIR in buckets of emulators on loopback.

`launch/test.sh --integrations buckets` has the packages for it.
"""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.buckets import servers
from tests.training.launching import FLAGS

for package in ('gcsfs', 's3fs', 'moto', 'gcp_storage_emulator'):
  if importlib.util.find_spec(package) is None:
    pytest.skip(f'{package} is not installed', allow_module_level=True)
# Before gcsfs is imported, which would look for credentials.
os.environ |= servers.environment('gs', 1)
import fsspec  # noqa: E402

STEPS = 30
MAIN = [sys.executable, '-m', 'lora_opt.main']
CACHE = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
ADAPTER = 'adapter/adapter_model.safetensors'


class Bucket:
  """An emulator, what its clients need to know, and its objects."""

  def __init__(self, scheme, environment, cache):
    self.root = f'{scheme}://{servers.BUCKET}'
    self.environment = os.environ | environment
    self.environment |= {
      'JAX_COMPILATION_CACHE_DIR': str(CACHE),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'LORA_OPT_BUCKET_CACHE': str(cache),
    }
    url = environment.get('STORAGE_EMULATOR_HOST')
    options = (
      {'endpoint_url': url, 'token': 'anon'}
      if url
      else {
        'endpoint_url': environment['AWS_ENDPOINT_URL'],
        'key': 'test',
        'secret': 'test',
      }
    )
    self.store = fsspec.filesystem(
      'gcs' if scheme == 'gs' else scheme, use_listings_cache=False, **options
    )

  def start(self, folder, *flags, mode='train', first=FLAGS, out=None):
    command = [
      *MAIN,
      f'--run_mode={mode}',
      *first,
      *flags,
      f'--gin.MODEL_DIR={self.root}/{folder}',
    ]
    command += [f'--gin.TRAIN_STEPS={STEPS}', '--gin.CHECKPOINT_PERIOD=7']
    return subprocess.Popen(
      command, stdout=out, stderr=out, env=self.environment
    )

  def run(self, folder, *flags, **how):
    """Runs to the end; what it printed, and how it ended."""
    process = self.start(folder, *flags, out=subprocess.PIPE, **how)
    out, errors = process.communicate(timeout=600)
    return out.decode() + errors.decode(), process.returncode

  def read(self, name):
    return self.store.cat_file(f'{self.root}/{name}')

  def names(self, folder):
    prefix = f'{servers.BUCKET}/{folder}/'
    found = self.store.find(f'{self.root}/{folder}')
    return {name.removeprefix(prefix) for name in found}


@pytest.fixture(scope='module', params=['gs', 's3'])
def bucket(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  with servers.serve(request.param, folder / 'server.log') as environment:
    yield Bucket(request.param, environment, folder / 'cache')


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory):
  """The run that those in buckets are to be like."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  command = [*MAIN, *FLAGS]
  command += [f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={STEPS}']
  subprocess.run([*command, '--gin.CHECKPOINT_PERIOD=7'], check=True)
  return folder


@pytest.fixture(scope='module')
def run(bucket):
  said, code = bucket.run('whole')
  assert code == 0, said
  return said


def own(names):
  """Without the files whose names Orbax and TensorBoard draw."""
  return {
    name
    for name in names
    if '/d/' not in name and not name.startswith('tensorboard/')
  }


def test_every_file_of_a_run_is_there(bucket, run, on_disk):
  names = bucket.names('whole')
  there = (p for p in on_disk.rglob('*') if p.is_file())
  assert own(names) == own(p.relative_to(on_disk).as_posix() for p in there)
  assert any(name.startswith('tensorboard/train/events') for name in names)
  assert bucket.read(f'whole/{ADAPTER}') == (on_disk / ADAPTER).read_bytes()
  for name in ('before', 'after'):
    path = f'evaluation/{name}.json'
    assert bucket.read(f'whole/{path}') == (on_disk / path).read_bytes()
  rows = bucket.read('whole/metrics.jsonl').splitlines()
  assert [json.loads(row)['step'] for row in rows] == list(range(1, STEPS + 1))
  assert b'</html>' in bucket.read('whole/report.html')
  assert f'report:  {bucket.root}/whole/report.html' in run


def test_started_again_it_has_nothing_to_do(bucket, run):
  said, code = bucket.run('whole')
  assert code == 0, said
  assert f'Going on from step {STEPS}' in said


def kill_when(process, happened):
  """Kills a run the moment something holds, of which it is told by polling."""
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    assert process.poll() is None, 'the run ended before it could be killed'
    if happened():
      process.send_signal(signal.SIGSTOP)
      if happened():
        process.kill()
        process.wait()
        return
      process.send_signal(signal.SIGCONT)
    time.sleep(0.002)
  process.kill()
  raise AssertionError('the moment never came')


def finished_again(bucket, folder, on_disk):
  said, code = bucket.run(folder)
  assert code == 0, said
  assert bucket.read(f'{folder}/{ADAPTER}') == (on_disk / ADAPTER).read_bytes()
  rows = bucket.read(f'{folder}/metrics.jsonl').splitlines()
  assert [json.loads(row)['step'] for row in rows] == list(range(1, STEPS + 1))
  return said


def mark(folder, step):
  return f'{folder}/checkpoints/step_{step}/commit_success.txt'


def test_killed_after_a_save_it_goes_on_bit_for_bit(bucket, on_disk):
  process = bucket.start('killed', '--gin.loop.train.data_workers=0')
  store, done = bucket.store, f'{bucket.root}/{mark("killed", 7)}'
  kill_when(process, lambda: store.exists(done))
  assert f'killed/{ADAPTER}' not in bucket.names('')
  said = finished_again(bucket, 'killed', on_disk)
  assert 'Going on from step' in said
  assert 'gives no sign' not in said  # of this machine: taken over at once


def test_killed_in_a_save_it_goes_on_from_the_one_before(bucket, on_disk):
  process = bucket.start('cut_off')
  place = f'{bucket.root}/cut_off/checkpoints/step_14'

  def under_way():
    found = bucket.store.find(place)
    return found and not any(
      name.endswith('step_14/commit_success.txt') for name in found
    )

  kill_when(process, under_way)
  said = finished_again(bucket, 'cut_off', on_disk)
  assert 'Going on from step 7' in said
  assert 'damaged' not in said


def test_a_damaged_checkpoint_is_set_aside(bucket, run, on_disk):
  store, root = bucket.store, bucket.root
  store.copy(f'{root}/whole/', f'{root}/hurt/', recursive=True)
  facts = f'{root}/hurt/checkpoints/step_30/facts/metadata'
  store.pipe_file(facts, store.cat_file(facts)[:-30])
  store.rm(f'{root}/hurt/adapter', recursive=True)
  said = finished_again(bucket, 'hurt', on_disk)
  assert f'moved to {root}/hurt/damaged/step_30' in said
  assert 'Going on from step 28' in said
  assert 'damaged/step_30/facts/metadata' in bucket.names('hurt')


def test_a_second_run_is_told_of_the_first(bucket, on_disk):
  process = bucket.start('held')
  lock = f'{bucket.root}/held/lock/0001.json'
  while not bucket.store.exists(lock):
    assert process.poll() is None
    time.sleep(0.05)
  try:
    process.send_signal(signal.SIGSTOP)
    said, code = bucket.run('held')
    assert code == 1
    assert f'is in use: process {process.pid}' in said
  finally:
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


def test_eval_infer_and_merge_of_what_is_there(bucket, run):
  said, code = bucket.run('whole', mode='eval')
  assert code == 0, said
  name = 'whole/evaluation/scores/word_sequence_reversal.json'
  scores = json.loads(bucket.read(name))
  after = json.loads(bucket.read('whole/evaluation/after.json'))
  assert scores['loss'] == after['loss']
  step = f'--gin.ADAPTER={bucket.root}/whole/checkpoints/step_30'
  said, code = bucket.run('of_step', step, mode='eval')
  assert code == 0, said
  name = name.replace('whole', 'of_step')
  assert json.loads(bucket.read(name))['loss'] == after['loss']
  said, code = bucket.run('whole', mode='infer')
  assert code == 0, said
  rows = bucket.read('whole/inference/word_sequence_reversal.jsonl')
  assert len(rows.splitlines()) == 4
  said, code = bucket.run('whole', mode='merge')
  assert code == 0, said
  assert {'merged/config.json', 'merged/model.safetensors'} <= bucket.names(
    'whole'
  )
  said, code = bucket.run('whole', mode='merge')
  assert code == 1
  assert 'whole/merged is there already' in said
  # What was merged is a model that can be read from there.
  first = [*FLAGS[:1], '--gin_file=configs/models/huggingface.gin', *FLAGS[2:]]
  first = [flag for flag in first if 'random_model' not in flag]
  model = f'--gin.MODEL_PATH={bucket.root}/whole/merged'
  none = '--gin.ADAPTER=none'
  said, code = bucket.run('of_merged', model, none, mode='eval', first=first)
  assert code == 0, said
  name = name.replace('of_step', 'of_merged')
  assert json.loads(bucket.read(name))['loss'] == pytest.approx(
    after['loss'], rel=1e-5
  )


def test_profile_is_there(bucket):
  said, code = bucket.run('profiled', '--profile=2')
  assert code == 0, said
  names = bucket.names('profiled')
  assert 'profile/summary.md' in names
  assert any(name.endswith('.xplane.pb') for name in names)


TASK = """
from __gin__ import dynamic_registration
from lora_opt.data import sources
from lora_opt.data import tasks
DATA_DIR = %gin.REQUIRED
TASK = @tasks.Generation()
tasks.Generation:
  name = 'say'
  train = @train/sources.Folder()
  eval = @eval/sources.Folder()
  chat = False
sources.Folder.name = 'say'
sources.Folder.folder = %DATA_DIR
train/sources.Folder.split = 'train'
eval/sources.Folder.split = 'eval'
"""


def with_data(tmp_path, data_dir):
  task = tmp_path / 'task.gin'
  task.write_text(TASK)
  first = [flag for flag in FLAGS if 'EXAMPLES' not in flag]
  first[3] = f'--gin_file={task}'
  return {'first': [*first, f'--gin.DATA_DIR={data_dir}']}


def lines(count, start=0):
  rows = ({'question': f'Say {i}', 'answer': f'{i}'} for i in range(count))
  return '\n'.join(json.dumps(row) for row in rows).encode() + b'\n'


def test_json_lines_are_read_from_a_bucket(bucket, tmp_path):
  for split, count in (('train', 40), ('eval', 6)):
    name = f'{bucket.root}/data/say/{split}.jsonl'
    bucket.store.pipe_file(name, lines(count))
    local = tmp_path / f'data/say/{split}.jsonl'
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_bytes(lines(count))
  here = with_data(tmp_path, tmp_path / 'data')
  said, code = bucket.run('of_local_data', **here)
  assert code == 0, said
  there = with_data(tmp_path, f'{bucket.root}/data')
  said, code = bucket.run('of_data', **there)
  assert code == 0, said
  assert '2 files of' in said
  adapter = bucket.read(f'of_data/{ADAPTER}')
  assert adapter == bucket.read(f'of_local_data/{ADAPTER}')
  # Fetched once, and again where the object is another.
  said, code = bucket.run('of_data', **there)
  assert code == 0 and 'are copied to' not in said, said
  bucket.store.pipe_file(f'{bucket.root}/data/say/train.jsonl', lines(41))
  said, code = bucket.run('of_data', **there)
  assert code == 1 and '1 files of' in said, said
  assert 'holds a run of something else' in said


def test_a_prepared_set_is_put_and_read(bucket, tmp_path):
  rows = [
    {'id': str(i), 'question': f'What is {i}?', 'answer': f'It is #### {i}'}
    for i in range(12)
  ]
  raw = tmp_path / 'raw'
  raw.mkdir()
  for split in ('train', 'test'):
    text = '\n'.join(map(json.dumps, rows))
    (raw / f'{split}.jsonl').write_text(text + '\n')
  command = [sys.executable, '-m', 'lora_opt.data.prepare', 'gsm8k']
  command += ['--raw', str(raw), '--data_dir', f'{bucket.root}/prepared']
  for _ in range(2):  # the second time it is there
    done = subprocess.run(
      command, env=bucket.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'gsm8k train: 12 rows' in done.stdout
    assert f'{bucket.root}/prepared/gsm8k/1.0.0' in done.stdout
  first = [flag for flag in FLAGS if 'EXAMPLES' not in flag]
  first[3] = '--gin_file=configs/tasks/gsm8k.gin'
  first.append(f'--gin.DATA_DIR={bucket.root}/prepared')
  said, code = bucket.run('of_prepared', first=first)
  assert code == 0, said
  assert 'array_record' in bucket.read('of_prepared/dataset.json').decode()


@pytest.mark.parametrize(
  ('setting', 'value', 'message'),
  [
    ('MODEL_DIR', '{scheme}://no-such-bucket/run', 'there is no bucket'),
    ('MODEL_DIR', '{scheme}://B%%/run', 'names no bucket'),
    ('ADAPTER', '{scheme}://bucket/no/adapter', 'nothing of that name'),
  ],
)
def test_a_mistake_is_said_at_once(bucket, tmp_path, setting, value, message):
  value = value.format(scheme=bucket.root.partition(':')[0])
  started = time.monotonic()
  local = [f'--gin.MODEL_DIR={tmp_path}/not_made']
  mode = 'eval' if setting == 'ADAPTER' else 'train'
  process = subprocess.run(
    [*MAIN, f'--run_mode={mode}', *FLAGS, *local, f'--gin.{setting}={value}'],
    env=bucket.environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 1
  assert f'{setting}={value}' in process.stderr
  assert message in process.stderr
  assert 'Traceback' not in process.stderr
  assert time.monotonic() - started < 120
  assert not (tmp_path / 'not_made').exists()
