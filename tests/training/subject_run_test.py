"""DreamBooth in one process, and killed: pictures, resumption, report."""

import functools
import json
import os
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lora_opt
from lora_opt.data import tasks
from lora_opt.devices.partitioning import DATA_PARALLEL, put
from lora_opt.evaluation import run as evaluation
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.pictures import PictureEvaluator
from lora_opt.models import LoraConfig, random_pipeline
from lora_opt.models.diffusion.random_pipeline import tiny
from lora_opt.training.loop import train
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state
from tests.data.image_files import colours, save
from tests.training.launching import Run, steps_logged

pytestmark = pytest.mark.usefixtures('fast_compile')

STEPS = 4
ADAPTER = 'adapter/pytorch_lora_weights.safetensors'
DRAW = functools.partial(
  PictureEvaluator, batch_size=4, draws=4, samples=2, steps=2
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pictures')
  for number in range(5):
    name = 'train' if number < 3 else 'eval'
    save(folder / name / f'{number}.png', colours(8, 8, number))
  return folder


@pytest.fixture(scope='module')
def model():
  target = r'unet/.*/attn[12]/to_(q|v)'
  return random_pipeline(
    LoraConfig(target=target, rank=2), config=tiny(pixels=True)
  )


def make_task(pictures, **settings):
  return tasks.SubjectGeneration(
    **{
      'name': 'subject',
      'train': str(pictures / 'train'),
      'eval': str(pictures / 'eval'),
      'prompt': 'a sks seven',
      'class_prompt': 'a seven',
      'class_count': 6,
      'sample_prompts': ('a sks seven', 'a seven'),
      **settings,
    }
  )


def run(folder, model, task, steps=STEPS, **settings):
  return train(
    folder,
    model,
    task,
    lora_opt.adamw(1e-2),
    train_steps=steps,
    batch_size=4,
    evaluator=DRAW,
    checkpoint_period=2,
    diagnostics=False,
    **settings,
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory, model, pictures):
  folder = tmp_path_factory.mktemp('run')
  run(folder, model, make_task(pictures), eval_period=2)
  return folder


@pytest.mark.long
def test_the_class_is_drawn_first_and_kept(folder, model, pictures, tmp_path):
  made = sorted((folder / 'class_pictures').glob('*.png'))
  assert len(made) == 6
  with Image.open(made[0]) as image:
    assert image.size == (8, 8)
  data = json.loads((folder / 'dataset.json').read_text())
  assert data['class']['examples'] == data['class']['made'] == 6
  # What a stopped start left is gone on with; what is lost comes back.
  again = tmp_path / 'run'
  shutil.copytree(folder / 'class_pictures', again / 'class_pictures')
  (again / 'class_pictures/00004.png').unlink()
  before = (again / 'class_pictures/00001.png').stat().st_mtime_ns
  run(again, model, make_task(pictures), steps=0, evaluate_before=False)
  assert (again / 'class_pictures/00001.png').stat().st_mtime_ns == before
  for path in made:
    copy = again / 'class_pictures' / path.name
    assert copy.read_bytes() == path.read_bytes()


def test_pictures_of_another_class_are_not_taken_for_these(
  folder, model, pictures, tmp_path
):
  shutil.copytree(folder / 'class_pictures', tmp_path / 'class_pictures')
  with pytest.raises(ValueError, match=r'made otherwise: class prompt: there '):
    run(tmp_path, model, make_task(pictures, class_prompt='a six'))


def test_a_run_that_stopped_ends_with_the_same_adapter(
  folder, model, pictures, tmp_path
):
  shutil.copytree(folder / 'class_pictures', tmp_path / 'class_pictures')
  for steps in (2, STEPS):
    run(tmp_path, model, make_task(pictures), steps=steps)
    shutil.rmtree(tmp_path / 'evaluation')
    (tmp_path / 'adapter').rename(tmp_path / f'adapter_{steps}')
  found = tmp_path / f'adapter_{STEPS}' / pathlib.Path(ADAPTER).name
  assert found.read_bytes() == (folder / ADAPTER).read_bytes()


def test_what_it_drew_is_in_files_report_and_tensorboard(folder):
  home = folder / 'evaluation/pictures'
  assert [path.stem for path in sorted(home.glob('*.json'))] == [
    f'step_{step:06d}' for step in (0, 2, STEPS)
  ]
  for step in (0, 2, STEPS):
    with Image.open(home / f'step_{step:06d}_1.png') as image:
      assert image.size == (17, 8)  # two pictures and the gap
  page = (folder / 'report.html').read_text()
  assert page.count('<img src="data:image/png;base64,') == 6
  assert 'alt="Pictures drawn of &#8216;a seven&#8217; after 4 steps"' in page
  assert '>Wrong both times' not in page
  assert len(list((folder / 'tensorboard/pictures').iterdir())) == 3


def test_the_score_is_a_loss_of_which_less_is_better(folder):
  before, after = (
    json.loads((folder / f'evaluation/{moment}.json').read_text())
    for moment in ('before', 'after')
  )
  for found in (before, after):
    assert found['lower_is_better']
    assert found['metric'] == 'validation_loss'
    losses = [row['score'] for row in found['predictions']]
    assert found['num_examples'] == len(losses) == 2 * 4
    assert found['score'] == found['loss'] == pytest.approx(np.mean(losses))
    low, high = found['interval']
    assert low < found['score'] < high
    assert found['halves'][1]['validation_loss'] == pytest.approx(
      np.mean(losses[1::2])
    )
  # The same times and noise, whatever is evaluated.
  first, last = (
    [row['timestep'] for row in found['predictions']]
    for found in (before, after)
  )
  assert first == last
  assert before['score'] != after['score']


@pytest.mark.long
def test_evaluations_do_not_depend_on_the_batch(model, pictures):
  task = make_task(pictures)
  placement = DATA_PARALLEL.place(model)
  found = [
    DRAW(model, task, placement, batch_size=size)(model.base, None)
    for size in (4, 3)
  ]
  # Sums in another order: a few roundings of float32.
  assert found[0]['loss'] == pytest.approx(found[1]['loss'], rel=1e-5)


@pytest.mark.long
def test_the_loss_of_a_step_is_that_of_dreambooth(folder, model, pictures):
  task = make_task(pictures, class_weight=0.3)
  task = task.with_made_images(str(folder / 'class_pictures'))
  placement = DATA_PARALLEL.place(model)
  optimizer = lora_opt.adamw(1e-2)
  lora = put(model.init(jax.random.key(0)), placement.trainable)
  state = create_train_state(lora, optimizer, placement)
  batch = next(
    iter(
      task.train_batches(
        model.tokenizer,
        length=model.row_length,
        batch_size=4,
        seed=0,
        form='text_to_image',
      )
    )
  )
  rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 0)
  arrays = {name: jnp.asarray(value) for name, value in batch.items()}
  losses = model.token_losses(model.base, lora, arrays, rng)[:, 0]
  expected = jnp.mean(losses[::2]) + 0.3 * jnp.mean(losses[1::2])
  step = make_train_step(model, optimizer, placement, state, seed=5)
  _, metrics = step(state, model.base, placement.put_batch(batch, 4))
  # A sum of four in another order.
  assert float(metrics['loss']) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.long
def test_prompts_are_drawn_by_run_mode_infer(folder, model, pictures):
  task = make_task(pictures, sample_prompts=('a seven on a hill',))
  home = evaluation.infer(folder, model, task, evaluator=DRAW)
  lines = (home / 'subject.jsonl').read_text(encoding='utf-8').splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row['prompt'] for row in rows] == ['a seven on a hill'] * 2
  one, two = ((home / row['file']).read_bytes() for row in rows)
  assert one != two


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'scheduler': 'plms'}, "kind='plms' must be one of ddim, euler"),
    ({'steps': 0}, 'PictureEvaluator: steps: expected a whole number'),
    ({'steps': 5000}, 'steps: expected a whole number from 1 to 1000'),
    ({'samples': -1}, 'PictureEvaluator: samples: expected'),
    ({'guidance_scale': float('nan')}, 'guidance_scale: expected a finite'),
  ],
)
def test_samplers_that_are_none_are_refused(model, pictures, settings, message):
  with pytest.raises(ValueError, match=message):
    DRAW(model, make_task(pictures), DATA_PARALLEL.place(model), **settings)


def test_prompts_longer_than_the_text_encoder_are_refused(model, pictures):
  task = make_task(pictures, sample_prompts=('a photo of sks seven on a hill',))
  with pytest.raises(ValueError, match='the text encoder reads 24: shorten'):
    DRAW(model, task, DATA_PARALLEL.place(model))


def test_the_evaluator_of_texts_names_the_one_of_pictures(model, pictures):
  with pytest.raises(ValueError, match='its evaluation is @pictures.Picture'):
    Evaluator(model, make_task(pictures), DATA_PARALLEL.place(model))


@pytest.mark.long
def test_killed_in_the_middle(tmp_path, pictures):
  flags = [
    '--gin_file=configs/runs/dreambooth.gin',
    '--gin_file=configs/models/random_diffusion.gin',
    '--gin.MODEL_PATH=none',
    f'--gin.INSTANCE_IMAGES={pictures / "train"}',
    '--gin.INSTANCE_PROMPT=a sks seven',
    '--gin.CLASS_PROMPT=a seven',
    '--gin.CLASS_COUNT=4',
    '--gin.SAMPLING_STEPS=2',
    '--gin.SAMPLES=1',
    '--gin.EVAL_PERIOD=None',
    '--gin.TRAIN_STEPS=400',
    '--gin.CHECKPOINT_PERIOD=20',
    '--gin.BATCH_SIZE=4',
  ]
  cache = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  whole = Run(tmp_path / 'whole', *flags, cache=cache)
  assert set(whole.wait()) == {0}, whole.text()
  folder = tmp_path / 'killed'
  killed = Run(folder, *flags, cache=cache)
  # One is saved beside the steps that follow, and whole some time later.
  while not any(
    path.name[5:].isdigit() for path in folder.glob('checkpoints/step_*')
  ):
    assert killed.processes[0].poll() is None, killed.text()
    time.sleep(0.001)
  killed.hold_at(30, 0)
  killed.processes[0].kill()
  killed.wait()
  assert steps_logged(folder) < 400
  again = Run(folder, *flags, cache=cache)
  assert set(again.wait()) == {0}, again.text()
  assert 'Going on from step' in again.text()
  for name in (ADAPTER, 'class_pictures/00003.png'):
    assert (folder / name).read_bytes() == (
      tmp_path / 'whole' / name
    ).read_bytes()
