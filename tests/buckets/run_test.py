"""Runs with MODEL_DIR and DATA_DIR in buckets of emulators on loopback.

`launch/test.sh --integrations buckets` has the packages for it.
"""

import functools
import json
import subprocess
import sys

import jax
import pytest

import lora_opt
from lora_opt.buckets.paths import as_path
from lora_opt.data import sources, tasks
from lora_opt.evaluation import run as evaluation
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.models import LoraConfig, from_folder, random_model
from lora_opt.training import places
from lora_opt.training.loop import train
from lora_opt.training.run_lock import RunLock
from tests.buckets.stores import check_installed

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  # aiohttp, of what gcsfs gives it.
  pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning'),
]

check_installed()

STEPS = 12
ADAPTER = 'adapter/adapter_model.safetensors'
EVALUATOR = functools.partial(Evaluator, max_new_tokens=4)


def rows(count, start=0):
  return [
    {'question': f'Say {i}', 'answer': str(i % 5)}
    for i in range(start, start + count)
  ]


def lines(count, start=0):
  return ''.join(json.dumps(r) + '\n' for r in rows(count, start)).encode()


@pytest.fixture(scope='module')
def model():
  lora = LoraConfig(rank=2, dropout=0.1)
  return random_model(lora, num_layers=1, remat='none')


@pytest.fixture(scope='module')
def task():
  return make_task(rows(40), rows(6, start=100))


def make_task(train, evaluated):
  return tasks.Generation(name='say', train=train, eval=evaluated, chat=False)


def run(folder, model, task, **settings):
  return train(
    folder,
    model,
    task,
    lora_opt.adamw(1e-2),
    train_steps=STEPS,
    task_feature_lengths={'targets': 64},
    batch_size=4,
    checkpoint_period=4,
    evaluator=EVALUATOR,
    **settings,
  )


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory, model, task):
  """The run that those in buckets are to be like."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  run(folder, model, task)
  return folder


@pytest.fixture(scope='module')
def whole(bucket, model, task):
  """A run that ended, in a bucket."""
  run(f'{bucket.root}/whole', model, task, profile_steps=2)
  return 'whole'


def own(names):
  """Without the files whose names Orbax, TensorBoard and JAX draw."""
  return {
    name
    for name in names
    if '/d/' not in name and name.partition('/')[0] not in _DRAWN
  }


_DRAWN = ('tensorboard', 'profile')


def steps_in(data):
  logged = map(json.loads, data.splitlines())
  return [row['step'] for row in logged if row['split'] == 'train']


def test_every_file_of_a_run_is_there(bucket, whole, on_disk):
  names = bucket.names(whole)
  there = (p for p in on_disk.rglob('*') if p.is_file())
  assert own(names) == own(p.relative_to(on_disk).as_posix() for p in there)
  assert any(name.startswith('tensorboard/train/events') for name in names)
  assert 'profile/summary.md' in names
  assert any(name.endswith('.xplane.pb') for name in names)
  for name in (ADAPTER, 'evaluation/before.json', 'evaluation/after.json'):
    assert bucket.read(f'whole/{name}') == (on_disk / name).read_bytes()
  assert steps_in(bucket.read('whole/metrics.jsonl')) == [*range(1, STEPS + 1)]
  assert b'</html>' in bucket.read('whole/report.html')


def goes_on(bucket, folder, model, task, on_disk):
  run(f'{bucket.root}/{folder}', model, task)
  assert bucket.read(f'{folder}/{ADAPTER}') == (on_disk / ADAPTER).read_bytes()
  logged = bucket.read(f'{folder}/metrics.jsonl')
  assert steps_in(logged) == [*range(1, STEPS + 1)]


def test_what_a_killed_save_leaves_is_no_checkpoint(
  bucket,
  whole,
  model,
  task,
  on_disk,
  capsys,
):
  bucket.copy(whole, 'cut')
  bucket.remove(f'cut/checkpoints/step_{STEPS}/commit_success.txt')
  bucket.remove(f'cut/checkpoints/step_{STEPS}/_CHECKPOINT_METADATA')
  bucket.remove('cut/adapter')
  bucket.remove('cut/evaluation/after.json')
  goes_on(bucket, 'cut', model, task, on_disk)
  said = capsys.readouterr().out
  assert f'Going on from step {STEPS - 4}' in said
  assert 'damaged' not in said
  mark = f'checkpoints/step_{STEPS}/commit_success.txt'
  assert mark in bucket.names('cut')


def test_a_damaged_checkpoint_is_set_aside(
  bucket,
  whole,
  model,
  task,
  on_disk,
  capsys,
):
  bucket.copy(whole, 'hurt')
  facts = f'hurt/checkpoints/step_{STEPS}/facts/metadata'
  bucket.put(facts, bucket.read(facts)[:-30])
  goes_on(bucket, 'hurt', model, task, on_disk)
  said = capsys.readouterr().out
  assert f'moved to {bucket.root}/hurt/damaged/step_{STEPS}' in said
  assert f'Going on from step {STEPS - 4}' in said
  assert f'damaged/step_{STEPS}/facts/metadata' in bucket.names('hurt')


def test_a_second_run_is_told_of_the_first(bucket):
  folder = as_path(f'{bucket.root}/held')
  with RunLock(folder, beat=0.2) as lock:
    with pytest.raises(OSError, match='is in use: process'):
      RunLock(folder).acquire()
    lock.check()
    owner = json.loads(bucket.read('held/lock/0001.json'))
    bucket.put('held/lock/0002.json', json.dumps(owner).encode())
    for _ in range(200):
      if lock._trouble:
        break
      lock._ended.wait(0.05)
    with pytest.raises(OSError, match='was taken over by'):
      lock.check()


def test_a_number_of_the_lock_is_made_once(bucket):
  folder = as_path(f'{bucket.root}/numbers')
  first, second = RunLock(folder), RunLock(folder)
  assert first._create(1).name == '0001.json'
  assert second._create(1) is None
  assert bucket.names('numbers') == {'lock/0001.json'}


def test_eval_infer_and_merge_of_what_is_there(
  bucket,
  whole,
  model,
  task,
):
  folder = f'{bucket.root}/{whole}'
  after = json.loads(bucket.read('whole/evaluation/after.json'))

  def loss_of(name, model, adapter=None):
    place = f'{bucket.root}/{name}'
    evaluation.score(place, model, task, evaluator=EVALUATOR, adapter=adapter)
    return json.loads(bucket.read(f'{name}/evaluation/scores/say.json'))['loss']

  assert loss_of(whole, model) == after['loss']
  step = f'{folder}/checkpoints/step_{STEPS}'
  assert loss_of('of_step', model, step) == after['loss']
  evaluation.infer(folder, model, task, evaluator=EVALUATOR)
  assert len(bucket.read('whole/inference/say.jsonl').splitlines()) == 6
  evaluation.merge(folder, model)
  with pytest.raises(FileExistsError, match='whole/merged is there already'):
    evaluation.merge(folder, model)
  # What was merged is a model that can be read from there.
  merged = from_folder(f'{folder}/merged', lora=LoraConfig(rank=2))
  loss = loss_of('of_merged', merged, 'none')
  assert loss == pytest.approx(after['loss'], rel=1e-5)


def test_json_lines_are_fetched_and_fetched_again(
  bucket,
  model,
  on_disk,
  capsys,
):
  for split, data in (('train', lines(40)), ('eval', lines(6, 100))):
    bucket.put(f'data/say/{split}.jsonl', data)

  def read(split):
    # As another process finds it.
    from lora_opt.reading import copies

    copies._fetched.cache_clear()
    return sources.Folder('say', split, f'{bucket.root}/data')

  task = make_task(read('train'), read('eval'))
  run(f'{bucket.root}/of_data', model, task)
  assert '2 files of' in capsys.readouterr().out
  adapter = bucket.read(f'of_data/{ADAPTER}')
  assert adapter == (on_disk / ADAPTER).read_bytes()
  assert len(read('train')) == 40
  assert 'are copied to' not in capsys.readouterr().out
  bucket.put('data/say/train.jsonl', lines(41))
  assert len(read('train')) == 41
  assert '1 files of' in capsys.readouterr().out
  with pytest.raises(FileNotFoundError, match='there is nothing in'):
    len(sources.Folder('none', 'train', f'{bucket.root}/data'))


def test_a_prepared_set_is_put_and_read(bucket, tmp_path):
  for split in ('train', 'test'):
    text = [
      {'question': f'What is {i}?', 'answer': f'It is\n#### {i}'}
      for i in range(12)
    ]
    data = ''.join(json.dumps(row) + '\n' for row in text)
    (tmp_path / f'{split}.jsonl').write_text(data)
  command = [sys.executable, '-m', 'lora_opt.data.prepare', 'gsm8k']
  command += ['--raw', str(tmp_path), '--data_dir', f'{bucket.root}/prepared']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert 'gsm8k train: 12 rows' in done.stdout
  assert f'{bucket.root}/prepared/gsm8k/1.0.0' in done.stdout
  found = sources.Folder('gsm8k', 'test', f'{bucket.root}/prepared')
  assert len(found) == 12
  assert found[3]['question'] == 'What is 3?'
  assert found.facts()['source'] == 'Tfds'


@pytest.mark.parametrize(
  ('argument', 'place', 'message'),
  [
    ('model_dir', 'no-such-bucket/run', 'there is no bucket'),
    ('adapter', 'bucket/no/adapter', 'there is nothing of that name'),
  ],
)
def test_a_mistake_is_said_at_once(bucket, argument, place, message):
  value = f'{bucket.root.partition("/")[0]}//{place}'
  with pytest.raises(OSError, match=message) as told:
    places.check({f'run.score.{argument}': repr(value)})
  assert f'run.score.{argument}={value}' in str(told.value)


def test_several_processes_on_s3_are_refused(monkeypatch, model, task):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='2 processes cannot keep its checkp'):
    run('s3://bucket/of_two', model, task)
