"""Damaged files of torch.save; collected where torch is installed."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from lora_opt.models.pretrained.torch_file import open_torch
from tests import fuzzing
from tests.models.pretrained.files_torch_test import STATE


@pytest.fixture(scope='module', name='files')
def _files(tmp_path_factory):
  """The bytes of a good file in the new and in the old format."""
  folder, found = tmp_path_factory.mktemp('torch'), []
  for new in (True, False):
    torch.save(STATE, folder / 'x', _use_new_zipfile_serialization=new)
    found.append((folder / 'x').read_bytes())
  return found


def contents(file):
  return {n: t.open().copy() for n, t in open_torch(file).items()}


def compare(file):
  """Whether a file is accepted; what is must be what torch maps."""
  found = fuzzing.outcome(lambda: contents(file), file)
  if isinstance(found, Exception):
    return False
  theirs = torch.load(
    file, 'cpu', weights_only=True, mmap=zipfile.is_zipfile(file)
  )
  assert found.keys() == theirs.keys()
  for name, array in found.items():
    expected = theirs[name].to(torch.float64).numpy()
    np.testing.assert_array_equal(array.astype(np.float64), expected)
  return True


def damage_many(file, files, seeds):
  accepted = 0
  for seed, rng in seeds:
    file.write_bytes(fuzzing.damaged(files[seed % 2], rng))
    accepted += compare(file)
  return accepted


@pytest.mark.filterwarnings('ignore')  # of torch, on old kinds of storages
def test_damaged_files(tmp_path, files):
  assert 5 < damage_many(tmp_path / 'x.bin', files, fuzzing.seeds(150)) < 140


@pytest.mark.long
@pytest.mark.filterwarnings('ignore')
def test_many_damaged_files(tmp_path, files):
  damage_many(tmp_path / 'x.bin', files, fuzzing.seeds(5000, 10**6))


class Payload:
  """A pickle that would run a command."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return os.system, (f'touch {self.mark}',)


@pytest.mark.parametrize('kind', ['pickle', 'new', 'old'])
def test_nothing_is_executed(tmp_path, kind):
  file, mark = tmp_path / 'x.bin', tmp_path / 'mark'
  content = {'x': torch.zeros(2), 'y': Payload(mark)}
  if kind == 'pickle':
    file.write_bytes(pickle.dumps(content))
  else:
    torch.save(content, file, _use_new_zipfile_serialization=kind == 'new')
  with pytest.raises(ValueError, match=r'x\.bin \(\d+ bytes\) is not a com'):
    open_torch(file)
  assert not mark.exists()


@pytest.mark.parametrize(
  ('tensor', 'message'),
  [
    (torch.eye(3).to_sparse(), 'tensor x is of layout torch.sparse_coo'),
    (torch.eye(3, device='meta'), 'tensor x is of layout .* on meta'),
    (torch.zeros(1).expand(10**12), 'but the file holds fewer numbers'),
  ],
)
def test_tensors_without_their_numbers(tmp_path, tensor, message):
  torch.save({'x': tensor}, tmp_path / 'x.bin')
  with pytest.raises(ValueError, match=message):
    open_torch(tmp_path / 'x.bin')


def test_what_is_no_file_is_named(tmp_path):
  os.mkfifo(tmp_path / 'pipe.bin')
  with pytest.raises(ValueError, match='is a device or a pipe, not a file'):
    open_torch(tmp_path / 'pipe.bin')


def test_names_that_are_no_text(tmp_path):
  torch.save({3: torch.zeros(2)}, tmp_path / 'x.bin')
  with pytest.raises(ValueError, match='3 is not a name of a tensor'):
    open_torch(tmp_path / 'x.bin')
