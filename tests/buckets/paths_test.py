"""Names of places, and what is said of those that cannot be used."""

import importlib.util
import os
import pathlib

import pytest

from lora_opt import config, writing
from lora_opt.buckets import paths
from lora_opt.buckets.outbox import Outbox, output_folder
from lora_opt.data import sources
from lora_opt.reading.copies import local_copy
from lora_opt.training import places


@pytest.fixture
def not_installed(monkeypatch):
  """Nothing of what serves buckets is found, whatever there is."""
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: None if name in ('gcsfs', 's3fs') else find(name),
  )


@pytest.mark.skipif(
  importlib.util.find_spec('gcsfs') is not None,
  reason='what is imported once stays; default tests have no such packages',
)
@pytest.mark.parametrize(
  ('name', 'package'), [('gs://bucket/run', 'gcsfs'), ('s3://bucket', 's3fs')]
)
def test_a_missing_package_is_named_with_what_installs_it(
  not_installed, name, package
):
  with pytest.raises(ValueError, match=f'MODEL_DIR={name}.*{package}') as told:
    paths.as_path(name)
  assert "pip install 'lora_opt[buckets]'" in str(told.value)
  for use in (
    lambda: writing.write_text(name, 'x'),
    lambda: local_copy(name),
    lambda: sources.Folder('set', 'train', name)[0],
    lambda: places.check({'loop.train.model_dir': f"'{name}'"}),
  ):
    with pytest.raises((ValueError, ImportError), match=package):
      use()
  assert not pathlib.Path(name.partition('/')[0]).exists()


def test_it_is_said_of_a_configuration(not_installed):
  config.load(['configs/runs/quickstart.gin'], ['MODEL_DIR=s3://bucket/run'])
  with pytest.raises(ValueError, match='MODEL_DIR=s3://bucket/run.*s3fs'):
    places.check(config.settings())


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('http://host/run', 'http:// is not written to'),
    ('az://container/run', 'az:// is not written to'),
    ('gs://', "'' names no bucket"),
    ('gs:///run', "'' names no bucket"),
    ('s3://My Bucket/run', "'My Bucket' names no bucket"),
    ('gs://bucket/../other', r'without \. and \.\.'),
  ],
)
def test_a_name_of_no_bucket(name, message):
  with pytest.raises(ValueError, match=message) as told:
    paths.as_path(name)
  assert f'MODEL_DIR={name}' in str(told.value)


@pytest.mark.parametrize('name', ['runs/a', '/runs/gs:/a', 'a:b', './gs'])
def test_all_else_is_a_local_path(name):
  assert paths.as_path(name) == pathlib.Path(name)
  assert not paths.is_bucket(name)
  assert not paths.is_bucket(pathlib.Path(name))


def test_only_what_takes_a_bucket_is_given_one():
  with pytest.raises(ValueError, match='a local path is needed here'):
    places.check({'x.something.tokenizer_file': "'gs://bucket/a'"})
  places.check({'x.train.model_dir': "'runs/a'", 'y.text': "'gs is a word'"})
  places.check({'MODEL_DIR': "'gs://bucket/a'"})  # which nothing uses


def test_local_folders_are_used_as_they_are(tmp_path):
  with output_folder(tmp_path / 'a') as folder:
    assert folder == tmp_path / 'a'
  outbox = Outbox(tmp_path / 'b')
  assert outbox.folder == tmp_path / 'b'
  outbox.put()
  outbox.close()
  assert (tmp_path / 'b').is_dir()
  assert local_copy(tmp_path) == tmp_path
  assert local_copy('~/x') == pathlib.Path(os.path.expanduser('~/x'))
