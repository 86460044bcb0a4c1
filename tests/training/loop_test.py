"""A whole run in one process: what it leaves, and how it ends."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import lora_opt
from lora_opt.data.tasks import Mixture
from lora_opt.devices.finite import by_path
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.history import read_metrics
from lora_opt.evaluation.run import score
from lora_opt.run_folder.checkpoint_files import read, read_trainable
from lora_opt.run_folder.run_directory import RunRecord
from lora_opt.training.loop import train
from lora_opt.training.schedules import warmup_cosine
from lora_opt.training.step_log import TrainingDivergedError
from lora_opt.training.trackers import Begun

pytestmark = pytest.mark.usefixtures('fast_compile')

STEPS = 12
ADAPTER = 'adapter_model.safetensors'
RECORD = RunRecord(
  command='python -m lora_opt.main --x',
  settings={'OPTIMIZER': '@lora_opt.adamw()'},
  config_text='A = 1\n',
  operative_config_text=lambda: 'A = 1  # used\n',
)


def run(folder, model, task, optimizer=None, steps=STEPS, **settings):
  return train(
    folder,
    model,
    task,
    optimizer or lora_opt.adamw(1e-2),
    train_steps=steps,
    task_feature_lengths={'targets': 64},
    batch_size=4,
    **(
      {
        'evaluator': functools.partial(Evaluator, max_new_tokens=8),
        'learning_rate': 1e-2,
        'record': RECORD,
      }
      | settings
    ),
  )


class Tracker:
  """Keeps what it is told of a run."""

  name, patience, at_once = 'kept', 10.0, 1

  def __init__(self):
    self.rows, self.runs, self.statuses = [], [], []

  def place(self):
    return {}

  def begin(self, run):
    self.runs.append(run)
    return Begun('1', 'here', run.sent)

  def log(self, rows):
    self.rows += [(row.split, row.step, row.scalars) for row in rows]

  def finish(self, status):
    self.statuses.append(status)


@pytest.fixture(scope='module')
def tracker():
  return Tracker()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, model, task, tracker):
  folder = tmp_path_factory.mktemp('run')
  run(
    folder,
    model,
    task,
    checkpoint_period=5,
    eval_period=6,
    clip_norm=1.0,
    trackers=[tracker],
  )
  return folder


def test_the_loss_falls_and_every_step_is_logged(folder):
  rows = [row for row in read_metrics(folder) if row['split'] == 'train']
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  losses = [row['loss'] for row in rows]
  assert np.mean(losses[-3:]) < np.mean(losses[:3])
  for row in rows[1:]:
    assert row['timing/tokens_per_second'] > 0
    assert 0 <= row['timing/data_wait_fraction'] < 1
    assert row['learning_rate'] == 1e-2
    assert 0.5 < row['non_padding_fraction'] <= 1


def test_it_is_evaluated_before_during_and_after(folder):
  before, after = (
    json.loads((folder / f'evaluation/{moment}.json').read_text())
    for moment in ('before', 'after')
  )
  assert (before['step'], after['step']) == (0, STEPS)
  assert after['loss'] < before['loss']
  assert len(after['predictions']) == after['num_examples'] == 6
  during = [row for row in read_metrics(folder) if row['split'] == 'eval']
  assert [row['step'] for row in during] == [6]


def test_trackers_are_told_what_metrics_jsonl_has(folder, tracker):
  told = [(split, step) for split, step, _ in tracker.rows]
  rows = [(row['split'], row['step']) for row in read_metrics(folder)]
  assert sorted(told) == sorted([('before', 0), *rows, ('after', STEPS)])
  for split, _, scalars in tracker.rows:
    if split in ('before', 'after'):
      kept = json.loads((folder / f'evaluation/{split}.json').read_text())
      scores = {n: m['score'] for n, m in kept['metrics'].items()}
      assert scalars == {'loss': kept['loss'], **scores}
  (seen,) = tracker.runs
  assert seen.name == folder.name and seen.settings['task'] == 'say'
  assert tracker.statuses == ['finished']


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('microbatches', 0),
    ('log_period', 0),
    ('checkpoint_period', -1),
    ('eval_period', 0),
    ('keep_checkpoints', 0),
    ('data_workers', 1.5),
    ('skip_patience', -1),
  ],
)
def test_a_number_out_of_its_range_is_named(tmp_path, model, task, name, value):
  with pytest.raises(ValueError, match=f'{name} .--gin.{name.upper()}.: exp'):
    run(tmp_path / 'run', model, task, **{name: value})
  assert not (tmp_path / 'run').exists()


def test_no_steps_evaluate_once_and_export_an_untrained_adapter(
  tmp_path, model, task
):
  times = []

  class Counted(Evaluator):
    def __call__(self, base, lora, step):
      times.append(step)
      return super().__call__(base, lora, step)

  evaluator = functools.partial(Counted, max_new_tokens=8)
  # What TRAIN_STEPS=0 makes of a gin file.
  rate = warmup_cosine(1e-2, 0)
  run(tmp_path, model, task, steps=0, learning_rate=rate, evaluator=evaluator)
  assert times == [0]
  before, after = (
    json.loads((tmp_path / f'evaluation/{moment}.json').read_text())
    for moment in ('before', 'after')
  )
  assert before == after
  found = model.load_adapter(str(tmp_path / 'adapter'))
  for one, other in zip(
    jax.tree.leaves(found),
    jax.tree.leaves(model.init(jax.random.key(0))),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)


def test_a_schedule_of_less_than_no_steps_is_refused():
  with pytest.raises(ValueError, match=r'TRAIN_STEPS.: expected .*found -1'):
    warmup_cosine(1e-2, -1)


class Interrupted(Exception):
  """What ends the process in the middle of an evaluation."""


def test_an_evaluation_that_was_cut_short_is_made_up_for(tmp_path, model, task):
  times = []

  class Cut(Evaluator):
    def __call__(self, base, lora, step):
      times.append(step)
      if times == [2]:
        raise Interrupted
      return super().__call__(base, lora, step)

  settings = {
    'steps': 4,
    'checkpoint_period': 2,
    'eval_period': 2,
    'evaluate_before': False,
    'evaluator': functools.partial(Cut, max_new_tokens=8),
  }
  with pytest.raises(Interrupted):
    run(tmp_path, model, task, **settings)
  run(tmp_path, model, task, **settings)
  rows = [row for row in read_metrics(tmp_path) if row['split'] == 'eval']
  assert [row['step'] for row in rows] == [2]
  assert times == [2, 2, 4]


def test_checkpoints_hold_no_frozen_weight(folder):
  steps = sorted(path.name for path in (folder / 'checkpoints').iterdir())
  assert steps == ['step_10', 'step_12']
  metadata = (folder / 'checkpoints/step_12/state/_METADATA').read_text()
  saved = [
    leaf['key_metadata'][0]['key'].split('/')
    for leaf in json.loads(metadata)['tree_metadata'].values()
  ]
  assert {path[0] for path in saved} == {'step', 'lora', 'opt_state'}
  # Everything large is a factor: step counters apart, nothing else is there.
  arrays = {path[-1] for path in saved if 'layers' in path}
  assert arrays == {'lora_a', 'lora_b'}
  names = (folder / 'model-info.txt').read_text()
  assert '# frozen base' in names and '# optimizer' in names


def test_the_adapter_and_the_report_are_there(folder):
  tensors = load_file(folder / 'adapter/adapter_model.safetensors')
  assert len(tensors) == 14  # two factors of seven projections of one layer
  assert any(np.abs(t).max() > 0 for n, t in tensors.items() if 'lora_B' in n)
  report = (folder / 'report.html').read_text()
  assert 'python -m lora_opt.main --x' in report and 'A = 1  # used' in report
  facts = json.loads((folder / 'run.json').read_text())
  assert facts['steps'] == STEPS and facts['optimizer'] == '@lora_opt.adamw()'
  assert 0 < facts['data_wait_fraction'] < 1
  assert 'Waiting for data' in report


def test_run_again_it_ends_at_once_with_the_same_adapter(folder, model, task):
  name = 'adapter/adapter_model.safetensors'
  before = (folder / name).read_bytes()
  note = folder / 'adapter/note.txt'
  note.touch()
  run(folder, model, task, checkpoint_period=5, clip_norm=1.0)
  assert (folder / name).read_bytes() == before
  assert note.exists()  # it is the user's
  assert len(read_metrics(folder)) == STEPS + 1


def test_another_run_in_the_same_folder_is_refused(folder, model, task):
  other = dataclasses.replace(RECORD, settings={'OPTIMIZER': '@lora_opt.x()'})
  with pytest.raises(ValueError, match=r'OPTIMIZER: there @lora_opt.adamw\(\)'):
    run(folder, model, task, record=other)


def test_an_adapter_can_be_the_start_of_the_next_run(
  tmp_path, folder, model, task
):
  run(tmp_path, model, task, steps=1, initial_adapter=str(folder / 'adapter'))
  before = json.loads((tmp_path / 'evaluation/before.json').read_text())
  after = json.loads((folder / 'evaluation/after.json').read_text())
  assert before['loss'] == pytest.approx(after['loss'], rel=1e-6)


def test_choices_are_scored_by_likelihood(tmp_path, model, choice_task):
  run(tmp_path, model, choice_task, steps=2)
  after = json.loads((tmp_path / 'evaluation/after.json').read_text())
  assert after['metric'] == 'accuracy'
  for prediction in after['predictions']:
    best = int(np.argmax(prediction['log_likelihoods']))
    assert prediction['prediction'] == prediction['choices'][best]


def test_a_diverging_run_stops_and_keeps_its_good_checkpoint(
  tmp_path, model, task
):
  def update(grads, state, params=None):
    # The sixth update makes the next loss NaN.
    bad = jax.numpy.where(state >= 5, jax.numpy.nan, 0.0)
    return jax.tree.map(lambda g: -1e-3 * g + bad, grads), state + 1

  poison = optax.GradientTransformation(lambda p: jax.numpy.zeros(()), update)
  with pytest.raises(TrainingDivergedError, match='at step 7'):
    run(tmp_path, model, task, poison, checkpoint_period=5)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['step_5']
  note = json.loads((tmp_path / 'diverged.json').read_text())
  assert 'at step 7' in note['error']


def test_an_unusable_row_ends_the_run_before_anything_is_trained(
  tmp_path, model, task
):
  broken = dataclasses.replace(task, eval=[{'question': 'x'}])
  with pytest.raises(ValueError, match="'answer'"):
    run(tmp_path, model, broken)
  assert not (tmp_path / 'metrics.jsonl').exists()


@pytest.mark.slow
def test_a_mixture_is_trained_and_each_task_evaluated(
  tmp_path, model, task, choice_task
):
  both = Mixture(name='both', tasks=(task, choice_task), rates='equal')
  run(tmp_path, model, both, steps=2)
  after = json.loads((tmp_path / 'evaluation/after.json').read_text())
  scores = after['metrics']
  assert list(scores) == ['mean_score', 'say_exact_match', 'which_accuracy']
  parts = [scores[name]['score'] for name in list(scores)[1:]]
  assert after['score'] == pytest.approx(np.mean(parts))
  assert {p['task'] for p in after['predictions']} == {'say', 'which'}
  assert after['num_examples'] == len(after['predictions']) == 13
  data = json.loads((tmp_path / 'dataset.json').read_text())
  assert data['rates'] == [0.5, 0.5]
  assert [part['examples'] for part in data['batches']] == [40, 40]
  assert data['tasks'][0]['train']['rows'] == 40
  report = (tmp_path / 'report.html').read_text()
  assert 'say: 40 for training, 6 for evaluation' in report


def test_an_average_is_evaluated_exported_and_resumed(
  tmp_path, model, task, capsys
):
  def trained(folder):
    optimizer = lora_opt.averaged(lora_opt.adamw(1e-2), others=True)
    settings = {'checkpoint_period': 5, 'keep_checkpoints': 9}
    return run(folder, model, task, optimizer, **settings)

  adapter = load_file(trained(tmp_path) / ADAPTER)
  assert 'The average of the adapters is evaluated' in capsys.readouterr().out
  arrays, _ = read(tmp_path / f'checkpoints/step_{STEPS}')
  lora = jax.eval_shape(model.init, jax.random.key(0))
  evaluated = read_trainable(tmp_path / f'checkpoints/step_{STEPS}', lora)
  for path, x in by_path(evaluated).items():
    (average,) = (
      array
      for name, array in arrays.items()
      if name.startswith('opt_state/') and name.endswith(f'/average/{path}')
    )
    np.testing.assert_array_equal(x, average)
    assert np.any(x != arrays[f'lora/{path}'])
  model.export(tmp_path / 'again', evaluated)
  jax.tree.map(
    np.testing.assert_array_equal,
    load_file(tmp_path / 'again' / ADAPTER),
    adapter,
  )
  after = json.loads((tmp_path / 'evaluation/after.json').read_text())
  again = score(tmp_path, model, [task], adapter=str(tmp_path / 'again'))
  scored = json.loads((again / f'{task.name}.json').read_text())
  assert scored['loss'] == pytest.approx(after['loss'])

  # As if killed after step 5.
  for name in ('checkpoints/step_10', f'checkpoints/step_{STEPS}', 'adapter'):
    shutil.rmtree(tmp_path / name)
  (tmp_path / 'evaluation/after.json').unlink()
  resumed = load_file(trained(tmp_path) / ADAPTER)
  assert 'Going on from step 5.' in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal, resumed, adapter)
