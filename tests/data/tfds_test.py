"""Prepared TFDS folders, read without TFDS: as it reads them, or refused."""

import json
import pathlib
import shutil
import sys
import warnings

import numpy as np
import pytest
from array_record.python import array_record_module

from lora_opt.data import sources
from lora_opt.data.sources import _tfds, _tfds_features
from tests import fuzzing
from tests.data import raw_files

ROWS = 60


@pytest.fixture(scope='session')
def made(tmp_path_factory):
  """A data set of several files with every kind of field that is read."""
  folder = tmp_path_factory.mktemp('tfds')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import tensorflow_datasets as tfds

    class RowsToy(tfds.core.GeneratorBasedBuilder):
      """Made rows."""

      __module__ = '__main__'  # TFDS looks for the files of a real module
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        tensor = tfds.features.Tensor
        features = tfds.features.FeaturesDict(
          {
            'question': tfds.features.Text(),
            'choices': tensor(shape=(None,), dtype=np.object_),
            'answer': np.int64,
            'label': tfds.features.ClassLabel(names=['no', 'yes']),
            'right': np.bool_,
            'score': np.float32,
            'box': tensor(shape=(None, 2), dtype=np.int32),
            'pair': tensor(shape=(2,), dtype=np.float64),
            'more': {'deep': {'text': tfds.features.Text()}},
          }
        )
        return tfds.core.DatasetInfo(
          builder=self, features=features, disable_shuffling=True
        )

      def _split_generators(self, dl_manager):
        return {'train': self._generate(ROWS), 'test': self._generate(7)}

      def _generate_examples(self):
        raise AssertionError('splits make their own')

      def _generate(self, count):
        for i in range(count):
          yield (
            i,
            {
              'question': f'Où ? {i}',
              'choices': ['a', 'é'][: i % 3],
              'answer': i - 5,
              'label': i % 2,
              'right': i % 3 == 0,
              'score': i / 10,
              'box': np.arange(2 * (i % 4), dtype=np.int32).reshape(-1, 2),
              'pair': [i, 0.1],
              'more': {'deep': {'text': 'x' * i}},
            },
          )

    builder = RowsToy(data_dir=folder, file_format='array_record')
    config = tfds.download.DownloadConfig(num_shards=3)
    builder.download_and_prepare(download_config=config)
  return folder


@pytest.fixture
def copy(made, tmp_path):
  """A copy to damage; the folder of the version."""
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  return tmp_path / 'rows_toy/1.0.0'


def source(folder, split='train', **settings):
  return sources.Tfds('rows_toy', split, str(folder.parents[1]), **settings)


def plain(value):
  """What TFDS gives, as our rows have it."""
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, float | np.floating):
    return float(str(np.float32(value)))
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  return [plain(v) for v in value] if isinstance(value, list) else value


SPLITS = [
  'train', 'test', 'train[:90%]', 'train[10%:]', 'train[33.3%:66.6%]',
  'train[-7:]', 'train[5:-5]', 'train[1_0:2_0]', 'train+test', 'all',
  'train[:5]+test[5:]', 'train[1shard]', 'train[1shard:]', 'train[:-1shard]',
  'train[:1%]+test', 'train[-50%:]', 'train[:0]+test',
]  # fmt: skip


def test_labels_have_the_names_that_tfds_gave_them(made):
  rows = source(made / 'rows_toy/1.0.0')
  assert rows.class_names('label') == ('no', 'yes')
  assert rows.class_names('answer') is None


@pytest.mark.parametrize('split', SPLITS)
def test_rows_are_those_that_tfds_reads(made, split):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(made / 'rows_toy/1.0.0'))
  assert len(list((made / 'rows_toy/1.0.0').glob('*-of-00003'))) == 6
  expected = [plain(row) for row in builder.as_data_source(split)]
  found = list(sources.Tfds('rows_toy', split, str(made)))
  assert found == expected
  assert [type(v) for v in found[0].values()] == [
    type(expected[0][key]) for key in found[0]
  ]
  assert len(sources.Tfds('rows_toy', split, str(made), limit=3)) == 3


@pytest.mark.parametrize('name', raw_files.RAW)
def test_every_recipe_is_read_as_tfds_reads_it(prepared, name):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(prepared / name / '1.0.0'))
  for split in builder.info.splits:
    expected = [plain(row) for row in builder.as_data_source(split)]
    assert list(sources.Tfds(name, split, str(prepared))) == expected


@pytest.mark.parametrize(
  'split',
  ['dev', 'train[', 'train[5]', 'train[10%:20]', 'train[:61]', 'train[:2.5]',
   'train[1:2:3]', 'train[]', 'train[x:]', '', 'train++test', 'train[5shard]',
   'train[:0]', 'train[7:3]', 'train[:200%]', 'all[:1]'],
)  # fmt: skip
def test_splits_that_are_none_are_named(made, split):
  with pytest.raises(ValueError, match='rows_toy'):
    len(sources.Tfds('rows_toy', split, str(made)))


def test_names_have_configurations_and_versions(copy):
  home = copy.parent
  shutil.copytree(copy, home / '1.2.0')
  shutil.copytree(copy, home / 'small/2.0.0')
  data = str(home.parent)

  def version(name):
    return sources.Tfds(name, 'test', data)._folder.relative_to(home).as_posix()

  assert version('rows_toy') == '1.2.0'
  assert version('rows_toy:1.0.0') == version('rows_toy:1.0.*') == '1.0.0'
  assert version('rows_toy/small') == 'small/2.0.0'
  shutil.rmtree(home / '1.2.0')
  shutil.rmtree(copy)
  (home / '.config').mkdir()
  (home / '.config/metadata.json').write_text('{"default_config_name":"small"}')
  assert version('rows_toy') == 'small/2.0.0'


@pytest.fixture
def trap(tmp_path, monkeypatch):
  """A module that leaves a mark when it is imported."""
  mark = tmp_path / 'imported'
  code = f'open({str(mark)!r}, "w")\nclass Text: pass\n'
  folder = tmp_path / 'modules'
  folder.mkdir()
  (folder / 'rows_trap.py').write_text(code)
  monkeypatch.syspath_prepend(str(folder))
  yield mark
  assert not mark.exists(), 'a module that a folder names was imported'


def edit(file, change):
  value = json.loads(file.read_text())
  change(value)
  file.write_text(json.dumps(value))


def test_nothing_that_a_folder_names_is_imported(copy, trap):
  def name_it(value):
    value['pythonClassName'] = 'rows_trap.Text'

  edit(copy / 'features.json', name_it)
  edit(copy / 'dataset_info.json', lambda v: v.update(moduleName='rows_trap'))
  with pytest.raises(ValueError, match=r'features\.json: no field of text'):
    len(source(copy))


def test_fields_of_other_classes_are_not_read(copy, trap):
  def change(value):
    fields = value['featuresDict']['features']
    fields['score'] = {'pythonClassName': 'rows_trap.Text', 'text': {}}
    fields['pair'] = {
      'pythonClassName': 'tensorflow_datasets.core.features.image_feature.Image'
    }

  edit(copy / 'features.json', change)
  changed = source(copy)
  assert changed[3]['question'] == 'Où ? 3'
  assert not {'score', 'pair'} & set(changed[0])
  assert changed.facts()['not_read']['score'] == 'rows_trap.Text'


INFOS = {
  'outside': (
    lambda v: v['splits'][0].update(filepathTemplate='../{SHARD_X_OF_Y}'),
    'not the path of a file inside',
  ),
  'absolute': (
    lambda v: v['splits'][0].update(filepathTemplate='/etc/{SHARD_INDEX}'),
    'not the path of a file inside',
  ),
  'split outside': (
    lambda v: v.update(name='../../x'),
    'not the path of a file inside',
  ),
  'one name': (
    lambda v: v['splits'][0].update(filepathTemplate='{DATASET}'),
    'one name',
  ),
  'fewer': (
    lambda v: v['splits'][0].update(shardLengths=['20', '19', '20']),
    'damaged file: 20 records, and dataset_info.json declares 19',
  ),
  'none': (
    lambda v: v['splits'][0].update(shardLengths=['20', '20', 0]),
    'damaged file: 20 records, and dataset_info.json declares 0',
  ),
  'fewer files': (
    lambda v: v['splits'][0].update(shardLengths=['20', '20']),
    'of-00002 is missing',
  ),
  'negative': (
    lambda v: v['splits'][0].update(shardLengths=['-1', '20', '20']),
    'expected a whole number from 0',
  ),
  'huge': (
    lambda v: v['splits'][0].update(shardLengths=[2**62, 20, 20]),
    'expected a whole number from 0',
  ),
  'no list': (lambda v: v.update(splits={}), 'splits: expected a list'),
  'twice': (lambda v: v['splits'].append(v['splits'][0]), 'occurs twice'),
  'format': (lambda v: v.update(fileFormat='tfrecord'), 'not tfrecord'),
  'no version': (lambda v: v.pop('version'), 'version: expected a text'),
}


@pytest.mark.parametrize('kind', INFOS)
def test_what_a_folder_declares_is_checked(copy, kind):
  change, message = INFOS[kind]
  edit(copy / 'dataset_info.json', change)
  with pytest.raises((ValueError, OSError), match=message) as caught:
    len(source(copy))
  assert str(copy) in str(caught.value)


def test_the_facts_identify_the_files(copy):
  facts = source(copy, limit=25).facts()
  assert [fact['file'][-14:] for fact in facts['files']] == [
    '00000-of-00003',
    '00001-of-00003',
  ]
  assert len(facts['files'][0]['sha256']) == 64
  twice = source(copy, 'train[:5]+train[5:9]').facts()['files']
  assert twice == facts['files'][:1]


def test_a_missing_or_damaged_file_is_named(copy):
  shard = next(copy.glob('rows_toy-train*00001-of*'))
  data = shard.read_bytes()
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=f'{shard.name} is missing'):
    len(source(copy))
  assert len(source(copy, limit=20)) == 20  # only the first is needed
  for size in (0, 1, 64, len(data) // 2, len(data) - 1):
    shard.write_bytes(data[:size])
    with pytest.raises(ValueError, match=f'{shard.name}: damaged file'):
      len(source(copy))


def check(folder, expected, *names):
  """Opens the folder; every row is whole, or refused with a name in it."""
  rows = source(folder)
  size = fuzzing.outcome(lambda: len(rows), *names)
  if isinstance(size, Exception):
    return
  assert size in (ROWS, 7)  # the splits may have changed their names
  for index in range(size):
    row = fuzzing.outcome(lambda i=index: rows[i], *names)
    if isinstance(row, OSError):
      return
    if not isinstance(row, Exception):
      for key in set(row) & set(expected[index]):
        same = row[key] == expected[index][key]
        assert same or 'features.json' in names, (key, row)
  fuzzing.outcome(rows.facts, *names)


FILES = ['dataset_info.json', 'features.json', 'metadata.json']


def fuzz_json(folder, name, count, start=0):
  (folder / 'metadata.json').write_text('{"splits": {"train": {"rows": 60}}}')
  expected = list(source(folder))
  value = json.loads((folder / name).read_text())
  for _, rng in fuzzing.seeds(count, start):
    (folder / name).write_bytes(fuzzing.damaged_json(value, rng))
    check(folder, expected, name, str(folder), 'rows_toy')


def fuzz_shard(folder, count, start=0):
  expected = list(source(folder))
  shard = next(folder.glob('rows_toy-train*00001-of*'))
  data = shard.read_bytes()
  used = [place for place, byte in enumerate(data) if byte]
  for seed, rng in fuzzing.seeds(count, start):
    changed = fuzzing.damaged(data, rng)
    if seed % 2:  # most of the file is padding
      place = rng.choice(used)
      flipped = bytes([data[place] ^ (1 << rng.randrange(8))])
      changed = data[:place] + flipped + data[place + 1 :]
    shard.write_bytes(changed)
    check(folder, expected, shard.name)


@pytest.mark.parametrize('name', FILES)
def test_damaged_json(copy, name):
  fuzz_json(copy, name, 60)


def test_damaged_records(copy):
  fuzz_shard(copy, 60)


@pytest.mark.long
@pytest.mark.parametrize('name', FILES)
def test_much_damaged_json(copy, name):
  fuzz_json(copy, name, 3000, start=1000)


@pytest.mark.long
def test_many_damaged_records(copy):
  fuzz_shard(copy, 3000, start=1000)


def test_features_in_sequences_and_translations(tmp_path):
  prefix = 'tensorflow_datasets.core.features.'
  text = {'pythonClassName': prefix + 'text_feature.Text', 'text': {}}

  def sequence(feature):
    name = prefix + 'sequence_feature.Sequence'
    inner = {'feature': feature, 'length': '-1'}
    return {'pythonClassName': name, 'sequence': inner}

  def several(**features):
    name = prefix + 'features_dict.FeaturesDict'
    return {'pythonClassName': name, 'featuresDict': {'features': features}}

  file = pathlib.Path(tmp_path / 'features.json')
  whole = several(
    answers=sequence(several(text=text)),
    lines=sequence(text),
    deep=sequence(sequence(text)),
    both={
      'pythonClassName': prefix + 'translation_feature.Translation',
      'translation': {'languages': ['de', 'en']},
    },
  )
  file.write_text(json.dumps(whole))
  features = _tfds_features.read_features(file)
  record = {
    'answers/text': (bytes, [b'a', b'b']),
    'lines': (bytes, []),
    'both/de': (bytes, [b'ja']),
    'both/en': (bytes, [b'yes']),
  }
  assert features.row(record) == {
    'answers': {'text': ['a', 'b']},
    'lines': [],
    'both': {'de': 'ja', 'en': 'yes'},
  }
  assert set(features.unread) == {'deep'}
  assert 'tensorflow' not in sys.modules


def test_a_small_file_of_a_large_record_takes_little_memory(copy):
  shard = next(copy.glob('rows_toy-test*00000-of*'))
  edit(
    copy / 'dataset_info.json',
    lambda v: v['splits'][1].update(shardLengths=['1', '3', '2']),
  )
  for size, kind in ((2**24, ValueError), (2**29, OSError)):
    writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1')
    writer.write(bytes(size))
    writer.close()
    assert shard.stat().st_size < 2**20
    row = fuzzing.outcome(lambda: source(copy, 'test')[0], 'rows_toy')
    assert isinstance(row, kind), row


def test_a_reader_has_most_of_its_memory_left(copy):
  len(source(copy, 'test'))
  process = _tfds._process()
  status = pathlib.Path(f'/proc/{process._process.pid}/status').read_text()
  peak = int(status.split('VmPeak:')[1].split()[0]) * 1024
  assert peak < process.memory / 2
