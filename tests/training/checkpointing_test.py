"""Checkpoints: whole or not at all, and a damaged one is not trained from."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_opt.devices.checksums import checksums, host_checksum
from lora_opt.run_folder import checkpoint_files, run_directory
from lora_opt.training.checkpointing import Checkpoints
from lora_opt.training.step_log import TrainingDivergedError
from lora_opt.training.train_state import TrainState

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  # After a read that failed, Orbax's threads call an event loop that is gone.
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]


class Place:
  """A data iterator's state, without the data."""

  def __init__(self, row=0):
    self.row = row

  def get_state(self):
    return {'epoch': 0, 'row': self.row}

  def set_state(self, state):
    self.row = state['row']


def state_at(step):
  lora = {
    'q': {
      'lora_a': jnp.arange(64.0).reshape(16, 4) + step,
      'lora_b': jnp.full((4, 16), step, jnp.bfloat16),
    }
  }
  return TrainState(jnp.int32(step), lora, optax.adam(0.1).init(lora))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with checkpoints of the steps 3 and 6."""
  folder = tmp_path_factory.mktemp('run')
  with Checkpoints(folder) as checkpoints:
    for step in (3, 6):
      checkpoints.save(state_at(step), Place(10 * step))
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def restored(folder):
  place = Place()
  with Checkpoints(folder) as checkpoints:
    state = checkpoints.restore(state_at(0), place)
  return state, place.row


def assert_equal(state, other):
  assert jax.tree.structure(state) == jax.tree.structure(other)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def test_the_newest_is_restored_as_it_was(folder, capsys):
  state, row = restored(folder)
  assert_equal(state, state_at(6))
  assert row == 60
  assert 'damaged' not in capsys.readouterr().out


def values_of(path):
  """The file that holds the arrays."""
  files = [p for p in (path / 'state/d').iterdir() if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


@pytest.mark.parametrize(
  'damage',
  [
    lambda step: os.truncate(values_of(step), 200),
    lambda step: flip(values_of(step)),
    lambda step: values_of(step).unlink(),
    lambda step: os.truncate(step / 'facts/metadata', 20),
    lambda step: shutil.rmtree(step / 'facts'),
  ],
  ids=['short', 'flipped', 'gone', 'short facts', 'no facts'],
)
def test_a_damaged_newest_one_is_set_aside_and_named(folder, damage, capsys):
  damage(folder / 'checkpoints/step_6')
  state, row = restored(folder)
  assert_equal(state, state_at(3))
  assert row == 30
  assert 'step_6 is damaged' in capsys.readouterr().out
  # Kept for whoever wants to look, and out of the way of the next save.
  assert (folder / 'damaged/step_6').exists()
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(state_at(6), Place(60))
  assert_equal(restored(folder)[0], state_at(6))


@pytest.mark.parametrize(
  'damage',
  [lambda file: os.truncate(file, file.stat().st_size // 2), flip, os.remove],
  ids=['short', 'flipped', 'gone'],
)
def test_whatever_file_is_damaged_a_run_goes_on(saved, tmp_path, damage):
  newest = saved / 'checkpoints/step_6'
  files = [f for f in newest.rglob('*') if f.is_file() and f.stat().st_size]
  assert len(files) > 5
  for i, file in enumerate(files):
    folder = tmp_path / str(i)
    shutil.copytree(saved, folder)
    damage(folder / file.relative_to(saved))
    state, row = restored(folder)
    assert row in (30, 60), file
    assert_equal(state, state_at(row // 10))


def test_a_changed_place_in_the_data_is_damage(folder):
  facts = folder / 'checkpoints/step_6/facts/metadata'
  facts.write_text(facts.read_text().replace('"row": 60', '"row": 61'))
  damage = checkpoint_files.damage(folder / 'checkpoints/step_6')
  assert damage == 'the checksum of its facts differs'


def test_a_state_that_is_not_finite_is_not_saved(folder):
  state = state_at(9)
  state.lora['q']['lora_a'] = state.lora['q']['lora_a'].at[0, 0].set(jnp.nan)
  with (
    pytest.raises(TrainingDivergedError, match='lora/q/lora_a is not finite'),
    Checkpoints(folder) as checkpoints,
  ):
    checkpoints.save(state, Place())
  assert_equal(restored(folder)[0], state_at(6))


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'int32', 'uint8', 'bool']
)
def test_checksums_on_device_and_host_agree(dtype):
  x = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(dtype)
  here = host_checksum(x)
  assert int(checksums({'x': jnp.asarray(x)})['x']) == here
  assert host_checksum(x[::-1]) != here != host_checksum(x.reshape(4, 3, 5))


def test_a_folder_that_is_read_only_is_named(tmp_path):
  tmp_path.chmod(0o555)
  root = os.geteuid() == 0
  if root:  # whom permissions do not stop
    os.seteuid(65534)
  try:
    with pytest.raises(OSError, match='cannot be written: Permission denied'):
      run_directory.make(tmp_path / 'run')
  finally:
    if root:
      os.seteuid(0)
    tmp_path.chmod(0o755)
