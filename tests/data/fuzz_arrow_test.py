"""Damaged arrow and parquet files: their rows, or a clear error."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_opt.data import sources, tasks
from tests import fuzzing

ROWS = 40
TABLE = pa.table(
  {
    'question': [f'Où ? {i}' for i in range(ROWS)],
    'choices': [['a', 'é', str(i)][: 2 + i % 2] for i in range(ROWS)],
    'answer': [i % 2 for i in range(ROWS)],
    'score': pa.array([i / 10 for i in range(ROWS)], pa.float32()),
    'kind': pa.array(['x', 'y'] * (ROWS // 2)).dictionary_encode(),
    'when': pa.array(range(ROWS), pa.timestamp('ns')),
    'more': [{'n': i, 'tags': ['t'] * (i % 3)} for i in range(ROWS)],
  }
)


def write(folder, form):
  """The table as a file of one of three forms; returns its path."""
  if form == 'parquet':
    path = folder / 'train-00000-of-00001.parquet'
    parquet.write_table(TABLE, path, row_group_size=15)
    return path
  path = folder / 'train/data.arrow'
  path.parent.mkdir(exist_ok=True)
  make = {'stream': pa.ipc.new_stream, 'file': pa.ipc.new_file}[form]
  with make(path, TABLE.schema) as writer:
    writer.write_table(TABLE, max_chunksize=15)
  state = {'_data_files': [{'filename': path.name}]}
  (path.parent / 'state.json').write_text(json.dumps(state))
  return path


def plain(row):
  """A row of pyarrow as the source gives it."""
  row = dict(row)
  row['score'] = float(str(np.float32(row['score'])))
  return row


def check(folder, path):
  source = sources.HuggingFace(str(folder), 'train')
  size = fuzzing.outcome(lambda: len(source), path.name)
  if isinstance(size, Exception):
    return
  rows = []
  for index in range(min(size, 200)):
    row = fuzzing.outcome(lambda i=index: source[i], path.name)
    if isinstance(row, OSError):
      return
    rows.append(row)
  for row in rows:
    if isinstance(row, Exception):
      assert 'not UTF-8' in str(row)
    else:
      json.dumps(row, ensure_ascii=False, default=str).encode()
  assert size == ROWS, 'rows went missing without a word'


@pytest.mark.parametrize('form', ['stream', 'file', 'parquet'])
def test_whole_files_are_what_pyarrow_says(tmp_path, form):
  write(tmp_path, form)
  source = sources.HuggingFace(str(tmp_path), 'train')
  rows = [dict(row) for row in source]
  assert {str(row.pop('when')) for row in rows} == {
    "Unread(type='timestamp[ns]')"
  }
  expected = TABLE.drop_columns(['when']).to_pylist()
  assert rows == [plain(row) for row in expected]
  assert [source[i]['answer'] for i in (39, 0, 16, 15)] == [1, 0, 0, 1]
  assert len(sources.HuggingFace(str(tmp_path), 'train', limit=17)) == 17


def fuzz(folder, form, count, start=0):
  path = write(folder, form)
  data = path.read_bytes()
  for _, rng in fuzzing.seeds(count, start):
    path.write_bytes(fuzzing.damaged(data, rng))
    check(folder, path)


@pytest.mark.parametrize('form', ['stream', 'file', 'parquet'])
def test_damaged_files(tmp_path, form):
  fuzz(tmp_path, form, 60)


@pytest.mark.long
@pytest.mark.parametrize('form', ['stream', 'file', 'parquet'])
def test_many_damaged_files(tmp_path, form):
  fuzz(tmp_path, form, 4000, start=1000)


@pytest.mark.parametrize('form', ['stream', 'file', 'parquet'])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, form):
  path = write(tmp_path, form)
  data = path.read_bytes()
  for size in range(0, len(data), len(data) // 40):
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=f'{path.name}: damaged file'):
      len(sources.HuggingFace(str(tmp_path), 'train'))


def test_a_stream_that_ends_between_two_batches_is_refused(tmp_path):
  path = write(tmp_path, 'stream')
  with pa.memory_map(str(path)) as data:
    stream = pa.ipc.open_stream(data)
    stream.read_next_batch()
    end = data.tell()
  path.write_bytes(path.read_bytes()[:end])
  source = sources.HuggingFace(str(tmp_path), 'train')
  with pytest.raises(ValueError, match='no end of the stream behind 15 rows'):
    len(source)
  assert len(sources.HuggingFace(str(tmp_path), 'train', limit=10)) == 10


@pytest.mark.parametrize('nested', [False, True])
def test_text_that_is_not_utf8_is_one_bad_row(tmp_path, nested):
  texts = pa.array([b'a', b'\xff', 'é'.encode()]).cast(pa.string(), safe=False)
  if nested:
    texts = pa.ListArray.from_arrays([0, 1, 2, 3], texts)
  table = pa.table({'question': texts, 'answer': ['x', 'y', 'z']})
  parquet.write_table(table, tmp_path / 'train.parquet')
  source = sources.HuggingFace(str(tmp_path), 'train')
  if nested:
    assert [source[0]['question'], source[2]['question']] == [['a'], ['é']]
  with pytest.raises(ValueError, match=r"train\.parquet row 1: .*'question': "):
    source[1]
  if not nested:
    task = tasks.Generation(name='t', train=source, eval=source, on_bad='skip')
    facts = task.facts()['train']
    assert (facts['examples'], facts['bad_rows']) == (2, 1)


@pytest.mark.parametrize(
  ('column', 'message'),
  [
    (pa.array([1.5, float('nan')]), 'must be text, .*nan'),
    (pa.array(['a', None]), 'must be text, found NoneType'),
    (pa.array([True, False]), 'must be text, found bool'),
    (pa.array([b'a', b'b']), "must be text, found Unread .*'binary'"),
    (pa.array([1, 2], pa.timestamp('ns')), r"found Unread .*'timestamp\[ns\]'"),
    (pa.array([1, 2], pa.decimal128(5, 2)), r"found Unread .*'decimal128\(5"),
    (pa.array([{'a': 1}, {}]), 'must be text, found dict'),
    (pa.array(['a', 'b' * 2000]), 'bytes, at most 1,000 are read'),
  ],
)
def test_values_that_are_no_text_are_bad_rows(tmp_path, column, message):
  table = pa.table({'question': column, 'answer': ['x', 'y']})
  parquet.write_table(table, tmp_path / 'train.parquet')
  source = sources.HuggingFace(str(tmp_path), 'train', longest=1000)
  task = tasks.Generation(name='t', train=source, eval=source)
  with pytest.raises(ValueError, match=rf'row \d: .*{message}'):
    task.validate()


def test_a_small_file_of_many_rows_takes_little_memory(tmp_path):
  """50 KB of parquet hold rows of 10 GB."""
  places = np.zeros(10**4, np.int32)
  texts = pa.DictionaryArray.from_arrays(places, ['x' * 2**20])
  path = tmp_path / 'train.parquet'
  # Without the schema of arrow, texts are read in full.
  parquet.write_table(pa.table({'q': texts}), path, store_schema=False)
  assert path.stat().st_size < 10**5
  source = sources.HuggingFace(str(tmp_path), 'train', limit=10)
  rows = fuzzing.outcome(lambda: list(source), path.name)
  assert rows == [{'q': 'x' * 2**20}] * 10


STATES = {
  'out': ({'_data_files': [{'filename': '../data.arrow'}]}, 'inside'),
  'absolute': ({'_data_files': [{'filename': '/etc/passwd'}]}, 'inside'),
  'number': ({'_data_files': [{'filename': 3}]}, 'inside'),
  'no list': ({'_data_files': 'data.arrow'}, 'expected a list'),
  'no entry': ({'_data_files': ['data.arrow']}, 'expected an object'),
  'none': ({'_data_files': []}, 'names no file'),
  'twice': ({'_data_files': [{'filename': 'data.arrow'}] * 2}, 'one twice'),
  'missing': ({'_data_files': [{'filename': 'b.arrow'}]}, 'not there'),
  'selection': (
    {'_data_files': [{'filename': 'data.arrow'}], '_indices_data_files': [{}]},
    'flatten_indices',
  ),
  'empty': ({}, 'expected a list'),
}


@pytest.mark.parametrize('kind', STATES)
def test_a_state_names_files_of_its_folder(tmp_path, kind):
  path = write(tmp_path, 'stream')
  state, message = STATES[kind]
  (path.parent / 'state.json').write_text(json.dumps(state))
  with pytest.raises((ValueError, OSError), match=rf'state\.json.*{message}'):
    len(sources.HuggingFace(str(tmp_path), 'train'))


def test_damaged_states(tmp_path):
  path = write(tmp_path, 'stream')
  file = path.parent / 'state.json'
  state = json.loads(file.read_text()) | {'_split': 'train', '_format': None}
  for _, rng in fuzzing.seeds(200):
    file.write_bytes(fuzzing.damaged_json(state, rng))
    source = sources.HuggingFace(str(tmp_path), 'train')
    size = fuzzing.outcome(lambda s=source: len(s), 'state.json')
    assert size == ROWS or isinstance(size, Exception)


@pytest.mark.parametrize(
  'names',
  [
    ['0000-of-0002'],
    ['0001-of-0002', '0002-of-0002'],
    ['0000-of-0001', '0000-of-0002', '0001-of-0002'],
    ['0000-of-0001-a09b74b3ef9c3b56', '0000-of-0001-0123456789abcdef'],
  ],
)
def test_all_parts_must_be_there(tmp_path, names):
  for name in names:
    parquet.write_table(TABLE, tmp_path / f'train-{name}.parquet')
  with pytest.raises(ValueError, match='are not the parts 0 to'):
    len(sources.HuggingFace(str(tmp_path), 'train'))


def test_columns_of_one_name_are_refused(tmp_path):
  table = pa.table([pa.array(['a']), pa.array(['b'])], ['q', 'q'])
  path = write(tmp_path, 'stream')
  with pa.ipc.new_stream(path, table.schema) as writer:
    writer.write_table(table)
  with pytest.raises(ValueError, match=r'data\.arrow: .*two columns have one'):
    len(sources.HuggingFace(str(tmp_path), 'train'))


def test_the_working_directory_may_change(tmp_path, monkeypatch):
  write(tmp_path, 'parquet')
  monkeypatch.chdir(tmp_path.parent)
  source = sources.HuggingFace(tmp_path.name, 'train')
  assert len(source) == ROWS
  monkeypatch.chdir('/')
  assert source[0]['question'] == 'Où ? 0'
