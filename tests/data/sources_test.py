"""Sources: every row is checked, and every complaint says where."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_opt.data import sources


def write(folder, text, name='rows.jsonl'):
  data = text if isinstance(text, bytes) else text.encode()
  (folder / name).write_bytes(data)
  return sources.JsonLines(name, str(folder))


def test_json_lines_are_random_access_rows(tmp_path):
  rows = [{'question': f'q{i} é', 'answer': i} for i in range(5)]
  source = write(tmp_path, '\n'.join(map(json.dumps, rows)) + '\n')
  assert len(source) == 5
  assert source[3] == rows[3]
  assert list(source) == rows
  assert source.where(3).endswith('rows.jsonl:4')


def test_json_lines_need_no_newline_at_the_end_and_take_crlf(tmp_path):
  assert list(write(tmp_path, '{"a": 1}\r\n{"a": 2}')) == [{'a': 1}, {'a': 2}]


def test_limit_takes_the_first_rows(tmp_path):
  write(tmp_path, '{"a": 1}\n{"a": 2}\n')
  source = sources.JsonLines('rows.jsonl', str(tmp_path), limit=1)
  assert list(source) == [{'a': 1}]
  with pytest.raises(IndexError, match='1 rows'):
    source[1]


@pytest.mark.parametrize('limit', [0, -1, 2.5])
def test_a_limit_must_be_a_positive_number(tmp_path, limit):
  write(tmp_path, '{"a": 1}\n')
  source = sources.JsonLines('rows.jsonl', str(tmp_path), limit=limit)
  with pytest.raises(ValueError, match=r'limit=.* must be a positive'):
    len(source)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"a": 1}\n{"a": \n', r'rows\.jsonl:2: not JSON: .*column .*found .*a'),
    ('{"a": 1}\n\n{"a": 2}\n', r'rows\.jsonl:2: not JSON: .*found no text'),
    (
      '{"a": 1}\n[1, 2]\n',
      r'rows\.jsonl:2: expected a JSON object, found list',
    ),
    ('"text"\n', r'rows\.jsonl:1: expected a JSON object, found str'),
    (b'{"a": 1}\n{"a": "\xff"}\n', r'rows\.jsonl:2: not UTF-8: byte 0xff'),
    ('', r'rows\.jsonl is empty: expected one JSON object a line'),
  ],
)
def test_bad_lines_are_named(tmp_path, text, message):
  source = write(tmp_path, text)
  with pytest.raises(ValueError, match=message):
    list(source)


def test_a_missing_file_says_what_to_set(tmp_path):
  source = sources.JsonLines('arc/train.jsonl', str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r'no data file .*DATA_DIR'):
    len(source)


def test_procedural_rows_follow_from_the_seed():
  first = sources.ReasoningGym('chain_sum', size=4, seed=1, max_terms=2)
  again = sources.ReasoningGym('chain_sum', size=4, seed=1, max_terms=2)
  other = sources.ReasoningGym('chain_sum', size=4, seed=99, max_terms=2)
  assert list(first) == list(again) != list(other)
  assert first.score(first[0]['answer'], first[0]) == 1
  assert first.score('no number', first[0]) == 0
  assert 'chain_sum' in first.where(2) and 'row 2' in first.where(2)


def test_procedural_rows_are_shared_where_seeds_meet():
  source = sources.ReasoningGym('chain_sum', size=10, seed=0)
  near = sources.ReasoningGym('chain_sum', size=10, seed=7)
  far = sources.ReasoningGym('chain_sum', size=10, seed=10)
  changed = sources.ReasoningGym('chain_sum', size=10, seed=7, max_terms=3)
  assert source.shared_rows(near) == near.shared_rows(source) == 3
  assert [source[i]['question'] for i in range(7, 10)] == [
    near[i]['question'] for i in range(3)
  ]
  assert source.shared_rows(far) == source.shared_rows(changed) == 0


def test_a_scorer_that_fails_gives_no_points(monkeypatch):
  source = sources.ReasoningGym('chain_sum', size=1, seed=0)

  def fail(answer, entry):
    raise ZeroDivisionError

  monkeypatch.setattr(source._dataset, 'score_answer', fail)
  assert source.score('1/0', source[0]) == 0


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    (sources.ReasoningGym('chain_sums', size=1, seed=0), 'near .*chain_sum'),
    (sources.ReasoningGym('zzzzqq', size=1, seed=0), 'nothing is near'),
    (
      sources.ReasoningGym('chain_sum', size=1, seed=0, terms=2),
      'no setting terms; it has min_terms',
    ),
    (
      sources.ReasoningGym('chain_sum', size=1, seed=0, max_terms=0),
      "'chain_sum' refuses .*max_terms",
    ),
  ],
)
def test_procedural_mistakes_are_named(source, message):
  with pytest.raises(ValueError, match=message):
    len(source)


def test_a_procedural_source_needs_rows():
  with pytest.raises(ValueError, match='size=0 must be >= 1'):
    sources.ReasoningGym('chain_sum', size=0, seed=0)


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory):
  """A small data set, prepared as a user would, without TensorFlow."""
  folder = tmp_path_factory.mktemp('tfds')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import tensorflow_datasets as tfds

    class LoraOptToy(tfds.core.GeneratorBasedBuilder):
      """Three questions and an answer that is not text."""

      __module__ = '__main__'  # TFDS looks for the files of a real module
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        features = tfds.features.FeaturesDict(
          {
            'question': tfds.features.Text(),
            'choices': tfds.features.Tensor(shape=(None,), dtype=np.object_),
            'answer': np.int64,
          }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

      def _split_generators(self, dl_manager):
        return {'train': self._generate(3), 'bad': self._generate(1, b'\xff')}

      def _generate_examples(self):
        raise AssertionError('splits make their own')

      def _generate(self, count, question='Où ?'):
        for i in range(count):
          yield i, {'question': question, 'choices': ['a', 'b'], 'answer': 1}

    builder = LoraOptToy(data_dir=folder, file_format='array_record')
    builder.download_and_prepare()
  return str(folder)


def test_tfds_rows_are_plain(tfds_folder):
  source = sources.Tfds('lora_opt_toy', 'train', tfds_folder)
  assert len(source) == 3
  assert source[0] == {'question': 'Où ?', 'choices': ['a', 'b'], 'answer': 1}
  assert type(source[0]['answer']) is int
  assert len(sources.Tfds('lora_opt_toy', 'train[:2]', tfds_folder)) == 2
  assert len(sources.Tfds('lora_opt_toy', 'train', tfds_folder, limit=1)) == 1
  assert 'tensorflow' not in sys.modules


def test_tfds_mistakes_are_named(tfds_folder, tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r"no prepared .*'ai2_ark'.*ai2_arc"
  ):
    len(sources.Tfds('ai2_ark', 'train', tfds_folder))
  with pytest.raises(ValueError, match=r"split 'dev'.*train"):
    len(sources.Tfds('lora_opt_toy', 'dev', tfds_folder))
  with pytest.raises(FileNotFoundError, match='download_and_prepare'):
    len(sources.Tfds('ai2_arc/ARC-Easy', 'train', str(tmp_path)))
  with pytest.raises(ValueError, match=r"row 0, field 'question': not UTF-8"):
    sources.Tfds('lora_opt_toy', 'bad', tfds_folder)[0]


def test_sources_load_nothing_before_they_are_used():
  code = (
    'import sys; from lora_opt.data import tasks, sources;'
    "sources.JsonLines('none'); sources.Tfds('none', 'train');"
    "sources.ReasoningGym('none', size=1, seed=0);"
    "print([m for m in ('tensorflow', 'tensorflow_datasets', 'reasoning_gym')"
    ' if m in sys.modules])'
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert run.stdout.strip() == '[]'


def saved_to_disk(folder):
  """What `Dataset.save_to_disk` leaves: arrow streams and a state."""
  (folder / 'train').mkdir(parents=True)
  tables = [
    pa.table({'a': [1, 2], 'b': ['x', 'y']}),
    pa.table({'a': [3], 'b': ['z']}),
  ]
  names = [f'data-0000{i}-of-00002.arrow' for i in range(2)]
  for name, table in zip(names, tables, strict=True):
    with pa.ipc.new_stream(folder / 'train' / name, table.schema) as writer:
      writer.write_table(table)
  state = {'_data_files': [{'filename': name} for name in names]}
  (folder / 'train/state.json').write_text(json.dumps(state))
  return pa.concat_tables(tables)


@pytest.mark.parametrize('place', ['', 'data/'])
def test_hugging_face_folders_are_read(tmp_path, place):
  table = saved_to_disk(tmp_path / 'saved')
  clone = tmp_path / 'clone' / place
  clone.mkdir(parents=True)
  parquet.write_table(table, clone / 'train-00000-of-00001.parquet')
  rows = table.to_pylist()
  for name in ('saved', 'clone'):
    source = sources.HuggingFace(str(tmp_path / name), 'train')
    assert list(source) == list(sources.Folder(name, 'train', tmp_path)) == rows
    assert source.where(1).endswith("split 'train' row 1")
    facts = sources.describe(source)
    assert facts['rows'] == 3 and facts['files'][0]['sha256']
  assert len(sources.HuggingFace(str(tmp_path / 'saved'), 'train', 2)) == 2


def test_hugging_face_mistakes_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no split 'train'.*state\.json"):
    len(sources.HuggingFace(str(tmp_path), 'train'))
  (tmp_path / 'train-0.parquet').write_bytes(b'PAR1 no')
  with pytest.raises(ValueError, match='damaged file'):
    len(sources.HuggingFace(str(tmp_path), 'train'))


@pytest.mark.parametrize('split', ['*', 't*', '[t]rain', '?rain'])
def test_the_name_of_a_split_is_no_pattern(tmp_path, split):
  folder = tmp_path / 'odd [x]*'
  folder.mkdir()
  parquet.write_table(pa.table({'a': [1]}), folder / 'train.parquet')
  assert len(sources.HuggingFace(str(folder), 'train')) == 1
  with pytest.raises(FileNotFoundError, match='holds no split'):
    len(sources.HuggingFace(str(folder), split))
  with pytest.raises(FileNotFoundError, match='no data for'):
    len(sources.Folder(folder.name, split, str(tmp_path)))


def test_a_folder_holds_sets_of_any_format(tfds_folder, tmp_path):
  (tmp_path / 'mine').mkdir()
  write(tmp_path / 'mine', '{"a": 1}\n{"a": 2}\n', 'train.jsonl')
  lines = sources.Folder('mine', 'train', str(tmp_path), limit=1)
  assert list(lines) == [{'a': 1}]
  assert lines.where(0).endswith('mine/train.jsonl:1')
  prepared = sources.Folder('lora_opt_toy', 'train', tfds_folder)
  assert prepared[2]['answer'] == 1
  facts = sources.describe(prepared)
  assert (facts['source'], facts['version']) == ('Tfds', '1.0.0')
  with pytest.raises(FileNotFoundError, match=r'data\.prepare gsm8k --raw'):
    len(sources.Folder('gsm8k', 'train', str(tmp_path)))
