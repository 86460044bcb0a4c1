"""Runs that are gone on with, scored and merged after their files were harmed.

Seeded: a damage is a file of a finished run and what became of it.
"""

import functools
import pathlib
import random
import shutil

import jax
import numpy as np
import pytest

import lora_opt
from lora_opt.evaluation import run as evaluation
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.training.loop import train
from tests.fuzzing import damaged

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('fast_compile'),
  # Orbax leaves readers of a checkpoint behind that could not be read.
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]

evaluator = functools.partial(Evaluator, max_new_tokens=2)
KINDS = ('damaged', 'emptied', 'damaged', 'gone', 'damaged', 'a folder')


def finished(folder, model, task, steps=4):
  return train(
    folder,
    model,
    task,
    lora_opt.adamw(1e-2),
    train_steps=steps,
    batch_size=4,
    task_feature_lengths={'targets': 64},
    checkpoint_period=2,
    evaluator=evaluator,
    evaluate_before=False,
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory, model, task):
  folder = tmp_path_factory.mktemp('whole') / 'run'
  finished(folder, model, task)
  return folder


def harm(path: pathlib.Path, kind: str, rng: random.Random) -> None:
  data = path.read_bytes()
  path.unlink()
  if kind == 'a folder':
    path.mkdir()
  elif kind != 'gone':
    path.write_bytes(damaged(data, rng) if kind == 'damaged' else b'')


def adapter_of(folder):
  path = folder / 'adapter/adapter_model.safetensors'
  return path.read_bytes() if path.is_file() else None


@pytest.mark.parametrize(
  'seed',
  [*range(2), *(pytest.param(s, marks=pytest.mark.long) for s in range(2, 60))],
)
def test_what_is_harmed_is_named_or_made_again(
  seed, whole, model, task, tmp_path
):
  """An error names what is wrong; without one nothing has changed silently."""
  rng = random.Random(seed)
  folder = tmp_path / 'run'
  shutil.copytree(whole, folder)
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  victim, kind = rng.choice(files), KINDS[seed % len(KINDS)]
  harm(victim, kind, rng)
  for what in (
    lambda: evaluation.score(folder, model, task, evaluator=evaluator),
    lambda: finished(folder, model, task, steps=6),
    lambda: evaluation.merge(folder, model),
  ):
    try:
      what()
    except (ValueError, OSError) as error:
      assert str(error), type(error)
      assert len(str(error)) < 4000
  after = adapter_of(folder)
  if after is not None and victim.name != 'adapter_model.safetensors':
    # Whatever was gone on with is the run's own: finite, and of its shapes.
    loaded = model.load_adapter(folder / 'adapter')
    for leaf in np.nditer(_flat(loaded), flags=['zerosize_ok']):
      assert np.isfinite(leaf)


def _flat(tree):
  return np.concatenate(
    [np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(tree)]
  )
