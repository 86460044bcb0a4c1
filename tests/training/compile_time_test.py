"""What the compiler took is known the next time, of the same program alone."""

import io
import json

import jax
import numpy as np
import pytest

from lora_opt import progress
from lora_opt.training import compile_time


@pytest.fixture
def cache(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield tmp_path
  jax.config.update('jax_compilation_cache_dir', before)


@pytest.fixture
def usual(monkeypatch):
  """What each step was said to have taken last time."""
  found = []
  waiting = progress.waiting

  def noted(what, usual=None):
    found.append((what, usual))
    return waiting(what, usual, stream=io.StringIO())

  monkeypatch.setattr(progress, 'waiting', noted)
  return found


def compiled(*shape, what='the step'):
  with compile_time.compiling(what, {'a': np.zeros(shape)}):
    pass


def test_the_last_time_of_the_same_program_is_known(cache, usual):
  compiled(2, 3)
  path = cache / compile_time.FILE
  (key,) = json.loads(path.read_text())
  path.write_text(json.dumps({key: 30.5}))
  compiled(2, 3)
  compiled(2, 4)
  compiled(2, 3, what='another')
  assert usual[:2] == [
    ('compiling the step', None),
    ('compiling the step', 30.5),
  ]
  assert [seconds for _, seconds in usual[2:]] == [None, None]
  assert len(json.loads(path.read_text())) == 3


@pytest.mark.parametrize('text', ['', '[]', '{"a": "b"}'])
def test_a_damaged_file_is_written_anew(cache, usual, text):
  (cache / compile_time.FILE).write_text(text)
  compiled(2)
  compiled(2)
  assert usual[0][1] is None and usual[1][1] >= 0


def test_only_so_many_are_kept(cache, monkeypatch):
  monkeypatch.setattr(compile_time, '_MOST', 2)
  for size in (1, 2, 3):
    compiled(size)
  assert len(json.loads((cache / compile_time.FILE).read_text())) == 2


def test_what_failed_to_compile_is_not_noted(cache):
  with pytest.raises(ValueError, match='no'), compile_time.compiling('a'):
    raise ValueError('no')
  assert not (cache / compile_time.FILE).exists()


@pytest.mark.parametrize('folder', [None, 'gs://bucket/cache'])
def test_without_a_cache_here_nothing_is_noted(usual, folder):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', folder)
  try:
    compiled(1)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert usual == [('compiling the step', None)]
