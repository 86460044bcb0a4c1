"""A whole run on images: it learns, goes on after kill -9, and is compared."""

import dataclasses
import functools
import json
import os
import pathlib

import numpy as np
import optax
import pytest

import lora_opt
from lora_opt.data import sources, tasks
from lora_opt.data.images import Augmentation
from lora_opt.devices.partitioning import Partitioner
from lora_opt.evaluation import run as modes
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.history import read_metrics
from lora_opt.models import LoraConfig, from_folder, random_vit
from lora_opt.training.loop import train
from tests.data.image_files import class_folders, colours, save
from tests.training.launching import Run

pytestmark = pytest.mark.usefixtures('fast_compile')

CLASSES = ('ant', 'bee', 'cat')
STEPS = 20


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  return class_folders(tmp_path_factory.mktemp('images'), CLASSES, 10, size=20)


@pytest.fixture(scope='module')
def model():
  lora = LoraConfig('.*/(q|v)', rank=2, dropout=0.1)
  return random_vit(lora, outputs=3, num_layers=1, remat='none', dropout=0.1)


def task_of(images, **settings):
  return tasks.ImageClassification(
    name='animals',
    train=sources.ClassFolders(str(images), 'train'),
    eval=sources.ClassFolders(str(images), 'eval'),
    augmentation=Augmentation(crop='random_area', area=(0.5, 1), flip=0.5),
    **settings,
  )


def run(folder, model, task, steps=STEPS, **settings):
  return train(
    folder,
    model,
    task,
    lora_opt.adamw(1e-2, other=optax.adam(1e-2)),
    train_steps=steps,
    batch_size=6,
    checkpoint_period=5,
    evaluator=functools.partial(Evaluator, batch_size=4),
    **settings,
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory, model, images):
  folder = tmp_path_factory.mktemp('whole') / 'run'
  run(folder, model, task_of(images))
  return folder


def test_it_learns_the_colours_of_the_classes(folder):
  before, after = (
    json.loads((folder / f'evaluation/{moment}.json').read_text())
    for moment in ('before', 'after')
  )
  assert after['metric'] == 'accuracy' and after['num_examples'] == 6
  assert after['loss'] < 0.5 * before['loss'] and after['score'] == 1.0
  prediction = after['predictions'][0]
  assert prediction['choices'] == list(CLASSES)
  assert prediction['picture'].startswith('data:image/png;base64,')
  rows = [r for r in read_metrics(folder) if r['split'] == 'train']
  assert len(rows) == STEPS and rows[0]['target_tokens'] == 6
  assert rows[-1]['timing/images_per_second'] > 0
  assert 'timing/tokens_per_second' not in rows[-1]
  assert 'non_padding_fraction' not in rows[-1]


def test_the_report_has_pictures_and_confusions(folder):
  page = (folder / 'report.html').read_text()
  for part in ('<h2>Classes</h2>', 'class="confusions"', '<img src="data:'):
    assert part in page
  # Not as of texts.
  assert '<h4>Image</h4>' in page and '<h4>Class</h4>' in page
  assert '<h4>Prompt</h4>' not in page and '<h4>Reference</h4>' not in page


def test_stopped_and_started_again_it_ends_with_the_same_weights(
  folder, tmp_path, model, images
):
  run(tmp_path / 'run', model, task_of(images), steps=8)
  (tmp_path / 'run/evaluation/after.json').unlink()
  run(tmp_path / 'run', model, task_of(images))
  name = 'adapter/adapter_model.safetensors'
  assert (tmp_path / 'run' / name).read_bytes() == (folder / name).read_bytes()


def test_a_moved_folder_is_the_same_data_and_a_changed_image_is_not(
  tmp_path, model
):
  images = class_folders(tmp_path / 'here', CLASSES, 4)
  run(tmp_path / 'run', model, task_of(images), steps=2)
  images = images.rename(tmp_path / 'there')
  run(tmp_path / 'run', model, task_of(images), steps=3)
  evaluated = task_of(images).examples('eval')[0].image.path
  save(pathlib.Path(evaluated), colours(8, 8))
  with pytest.raises(ValueError, match='evaluation data: there .* here'):
    run(tmp_path / 'run', model, task_of(images), steps=4)


def test_eval_infer_and_merge_say_the_same(folder, tmp_path, model, images):
  task = task_of(images)
  adapter = str(folder / 'adapter')
  after = json.loads((folder / 'evaluation/after.json').read_text())
  modes.score(tmp_path, model, task, adapter=adapter)
  scored = json.loads((tmp_path / 'evaluation/scores/animals.json').read_text())
  assert scored['loss'] == pytest.approx(after['loss'], rel=1e-5)
  modes.infer(tmp_path, model, task, adapter=adapter)
  lines = (tmp_path / 'inference/animals.jsonl').read_text().splitlines()
  said = [json.loads(line)['prediction'] for line in lines]
  assert said == [row['prediction'] for row in after['predictions']]
  modes.merge(tmp_path, model, adapter=adapter)
  merged = from_folder(tmp_path / 'merged', outputs=3)
  assert merged.labels == CLASSES
  result = Evaluator(merged, task, Partitioner().place(merged))
  assert result(merged.base, None)['loss'] == pytest.approx(
    after['loss'], rel=1e-4
  )


def test_labels_in_another_order_are_put_in_that_of_the_task(
  folder, model, images
):
  names = CLASSES[::-1]
  task = task_of(images, label_names=names)
  named = model.named(names)
  trained = named.load_adapter(folder / 'adapter')
  result = Evaluator(named, task, Partitioner().place(named))(
    model.base, trained
  )
  assert result['score'] == 1.0


@pytest.mark.long
def test_microbatches_take_the_same_step(tmp_path, model, images):
  still = dataclasses.replace(
    model, dropout=0.0, lora_config=LoraConfig('.*/(q|v)', rank=2)
  )
  losses = []
  for name, settings in (('one', {}), ('parts', {'microbatches': 3})):
    run(tmp_path / name, still, task_of(images), steps=2, **settings)
    rows = [r for r in read_metrics(tmp_path / name) if r['split'] == 'train']
    losses.append([row['loss'] for row in rows])
  np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_model_of_other_outputs_is_refused(tmp_path, model, images):
  other = dataclasses.replace(model, outputs=4)
  with pytest.raises(ValueError, match=r'needs 3 output\(s\), the model has'):
    run(tmp_path, other, task_of(images))


@pytest.mark.long
def test_killed_at_a_step_it_ends_with_the_same_adapter(tmp_path, images):
  """In processes of their own, with one that makes batches ahead."""
  cache = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  flags = [
    '--gin_file=configs/runs/finetune.gin',
    '--gin_file=configs/models/random_vit.gin',
    '--gin_file=configs/lora/vit.gin',
    '--gin_file=configs/tasks/image_folder.gin',
    '--gin_file=configs/optimizers/lora_rite.gin',
    f'--gin.IMAGES={images}',
    '--gin.NUM_OUTPUTS=3',
    '--gin.TRAIN_STEPS=30',
    '--gin.CHECKPOINT_PERIOD=7',
    '--gin.DATA_WORKERS=1',
    '--gin.models.random_vit.num_layers=1',
  ]

  def start(name):
    return Run(tmp_path / name, cache=cache, first=flags)

  whole = start('whole').finish()
  killed = start('killed')
  killed.hold_at(9, index=0)
  (process,) = killed.processes
  process.kill()
  process.wait()
  assert start('killed').finish() == whole
