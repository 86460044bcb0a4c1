"""Damaged files of publishers: rows of the right types, or clear errors."""

import json
import random

import pytest

from lora_opt.data.prepare import builder, checking, readers, recipes
from tests import fuzzing
from tests.data import raw_files

TYPES = {'text': str, 'texts': list, 'int': int, 'float': float, 'bool': bool}


def look(name, split, raw):
  """All rows of a split, each checked; or the error of the whole file."""
  recipe = recipes.RECIPES[name]
  paths = builder._find(name, recipe, raw, split)
  return list(checking.checked_rows(recipe, *paths))


def check(name, split, raw, whole):
  names = [path.name for path in raw.rglob('*') if path.is_file()]
  rows = fuzzing.outcome(lambda: look(name, split, raw), *names)
  if isinstance(rows, Exception):
    return
  fields = recipes.RECIPES[name].fields
  for row in rows:
    if isinstance(row, ValueError):
      assert any(name in str(row) for name in names), row
      assert len(str(row)) < 600, row
      continue
    assert set(row) == set(fields)
    for field, kind in fields.items():
      assert type(row[field]) is TYPES[kind], (field, row)
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    assert 'NaN' not in text and text.encode()
    assert ': None' not in text.replace('null', 'None')
  assert whole or rows == []


def damaged_file(data, rng):
  """Bytes changed, or values of JSON, or fields of a table."""
  text = data.decode()
  lines = text.split('\n')
  kind = rng.randrange(3)
  if kind == 0:
    return fuzzing.damaged(data, rng)
  place = rng.randrange(len(lines))
  if lines[place].startswith(('{', '[')):
    value = json.loads(lines[place])
    lines[place] = fuzzing.damaged_json(value, rng).decode('utf-8', 'replace')
  else:
    fields = lines[place].split('\t')
    fields[rng.randrange(len(fields))] = str(rng.choice(fuzzing.NASTY))
    lines[place] = '\t'.join(fields)
  return '\n'.join(lines).encode('utf-8', 'replace')


def fuzz(name, folder, count, start=0):
  raw = raw_files.write(name, folder)
  split = raw_files.RAW[name].split
  paths = recipes.RECIPES[name].all_files(
    *builder._find(name, recipes.RECIPES[name], raw, split)
  )
  files = {path: path.read_bytes() for path in paths}
  whole = look(name, split, raw)
  assert whole[0] == raw_files.RAW[name].row
  for _, rng in fuzzing.seeds(count, start):
    path = rng.choice(list(files))
    path.write_bytes(damaged_file(files[path], rng))
    check(name, split, raw, whole)
    path.write_bytes(files[path])


@pytest.mark.parametrize('name', raw_files.RAW)
def test_damaged_files_of_publishers(name, tmp_path):
  fuzz(name, tmp_path, 40)


@pytest.mark.long
@pytest.mark.parametrize('name', raw_files.RAW)
def test_many_damaged_files_of_publishers(name, tmp_path):
  fuzz(name, tmp_path, 1500, start=1000)


# What was taken for something else without a word, or ended in a traceback.
CHANGES = {
  'gsm8k': [
    ('answer', 'So it is 4.', "no '####'"),
    ('question', None, "'question': expected a text, found None"),
    ('question', '\ud800', 'half a surrogate'),
    ('answer', float('nan'), 'NaN is not a number'),
  ],
  'arc_easy': [
    ('answerKey', 'Z', 'is not in list'),
    ('answerKey', 1, "'answerKey': expected a text"),
    ('question', 'text', "'question': expected an object"),
  ],
  'hellaswag': [
    ('activity_label', None, "'activity_label': expected a text, found None"),
    ('ctx_b', 3, "'ctx_b': expected a text"),
    ('endings', 'abcd', "'endings': expected a list"),
    ('label', True, 'expected a whole number'),
    ('label', 1.9, 'expected a whole number'),
    ('label', '1_0', 'expected a whole number'),
    ('label', '٣', 'expected a whole number'),
  ],
  'boolq': [('answer', 1, "'answer' must be bool, found 1")],
  'piqa': [('sol1', None, "'sol1': expected a text"), ('goal', [], 'a text')],
  'siqa': [('context', None, "'context': expected a text, found None")],
  'winogrande': [('answer', 2.0, 'whole number'), ('answer', '3', 'none of 0')],
  'commonsense_170k': [('answer', None, "'answer': expected a text")],
  'math_10k': [
    ('answer', None, 'must be a text or a number, found None'),
    ('answer', [4], 'must be a text or a number'),
    ('answer', 1e-9, 'must be a text or a number'),
  ],
  'addsub': [
    ('lSolutions', [1, 2], 'a list of 1'),
    ('lSolutions', ['1_0'], 'expected a finite number'),
    ('lSolutions', [True], 'expected a finite number'),
    ('lSolutions', [12345678901.5], 'ten digits'),
  ],
  'svamp': [('Answer', 'nan', 'a finite number'), ('Body', 1, 'a text')],
  'aqua': [
    ('correct', '', "'correct': expected one of 'A'"),
    ('correct', 'BC', "'correct': expected one of 'A'"),
    ('options', ['1', '2', '3'], "options must be as 'A\\)5'"),
    ('options', ['A)1'], "expected one of 'A', found 'B'"),
  ],
}


@pytest.mark.parametrize('name', CHANGES)
def test_nothing_is_taken_for_something_else(name, tmp_path):
  raw = raw_files.write(name, tmp_path)
  split = raw_files.RAW[name].split
  recipe = recipes.RECIPES[name]
  path = builder._find(name, recipe, raw, split)[0]
  text = path.read_text()
  for field, value, message in CHANGES[name]:
    row = json.loads(text.split('\n')[0])
    row = row[0] if isinstance(row, list) else row
    row[field] = value
    line = json.dumps(row)
    path.write_text(f'[{line}]' if text.startswith('[') else f'{line}\n')
    (found, *_) = checking.checked_rows(recipe, path, *others(path))
    assert isinstance(found, ValueError), (field, value)
    with pytest.raises(
      ValueError, match=rf'{path.name}(:1|, entry 0): '
    ) as one:
      raise found
    one.match(message)


def others(path):
  """The file of labels, of one line."""
  labels = path.with_name(f'{path.stem}-labels.lst')
  if labels.exists():
    labels.write_text('1\n')
    return [labels]
  return []


@pytest.mark.parametrize(
  ('name', 'old', 'new', 'message'),
  [
    ('sst2', 'fine .\t1', 'fine .\t1_0', 'expected a whole number'),
    ('sst2', 'fine .', 'fi\0ne', 'holds NUL'),
    ('sst2', 'fine .', 'x' * (2**24 + 1), 'bytes, at most'),
    ('stsb', '3.8', 'nan', 'expected a finite number'),
    ('stsb', '3.8', '1e999', 'expected a finite number'),
    ('rte', 'not_entailment', 'neutral', "expected one of 'entailment'"),
    ('cola', '\t1\t', '\t1.0\t', 'expected a whole number'),
  ],
)
def test_fields_of_tables_are_checked(tmp_path, name, old, new, message):
  raw = raw_files.write(name, tmp_path)
  path = builder._find(name, recipes.RECIPES[name], raw, 'test')[0]
  path.write_text(path.read_text().replace(old, new))
  first, *rest = look(name, 'test', raw)
  line = 1 if name == 'cola' else 2
  with pytest.raises(ValueError, match=rf'{path.name}:{line}: .*{message}'):
    raise first
  assert all(isinstance(row, dict) for row in rest)


def test_one_bad_entry_of_a_list_is_one_bad_row(tmp_path):
  path = tmp_path / 'rows.json'
  bad = ['{"a": NaN}', '{"a": 1, "a": 2}', r'{"a": "\ud800"}', '[1]', '"x"']
  bad += ['[' * 500 + ']' * 500, '9' * 5000, 'null']
  good = ['{"a": [1, {"b": "],["}]}', '{}']
  path.write_text(' [\n' + ' ,\n'.join([good[0], *bad, good[1]]) + ']\n ')
  rows = [row for _, row in readers.json_list(path)]
  assert (rows[0], rows[-1]) == ({'a': [1, {'b': '],['}]}, {})
  for number, row in enumerate(rows[1:-1], 1):
    assert isinstance(row, ValueError)
    assert f'rows.json, entry {number}: ' in str(row)


@pytest.mark.parametrize(
  'text',
  ['', '{}', '[', '[{}', '[{},', '[{},]', '[{} {}]', '[{}] x', '[,]', '[}',
   '[' * 10**5, 'x', '[{]'],
)  # fmt: skip
def test_a_list_that_is_damaged_is_an_error(tmp_path, text):
  path = tmp_path / 'rows.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=r'rows\.json'):
    list(readers.json_list(path))
  path.write_text('[ ]')
  assert list(readers.json_list(path)) == []


@pytest.mark.parametrize('name', ['../../secret', '/etc/passwd', 'none'])
def test_a_list_of_tasks_names_files_of_its_folder(tmp_path, name):
  raw = raw_files.write('super_ni', tmp_path)
  (tmp_path / 'secret.json').write_text(json.dumps(raw_files.NI_TASK))
  (raw / 'splits/default/test_tasks.txt').write_text(f'task1_title\n{name}\n')
  with pytest.raises((ValueError, OSError), match=r'test_tasks\.txt'):
    look('super_ni', 'test', raw)


def test_half_a_surrogate_in_an_instance_is_one_bad_row(tmp_path):
  raw = raw_files.write('super_ni', tmp_path)
  path = raw / 'tasks/task1_title.json'
  path.write_text(path.read_text().replace('Snow lay', '\\\\ud800'[1:]))
  bad, good = look('super_ni', 'test', raw)
  assert 'task1_title.json, instance 0: ' in str(bad)
  assert good['input'] == 'Wind blew'


def test_a_split_without_a_good_row_is_refused(tmp_path):
  raw = raw_files.write('gsm8k', tmp_path / 'raw')
  for path in raw.rglob('*.jsonl'):
    path.write_text('{}\n{}\n')
  with pytest.raises(
    ValueError, match=r'jsonl holds no row that can be used, '
  ):
    builder.prepare('gsm8k', raw, tmp_path / 'data', on_bad='skip')


def test_marks_of_hellaswag_are_removed_in_little_time():
  import re

  from lora_opt.data.prepare.rows import _cleaned

  rng = random.Random(0)
  for _ in range(500):
    text = ''.join(rng.choices('[]ab \n', k=rng.randrange(20)))
    plain = text.strip().replace(' [title]', '. ')
    expected = re.sub(r'\[.*?\]', '', plain).replace('  ', ' ')
    assert _cleaned(text) == expected
  assert len(_cleaned('[' * 10**6)) == 10**6
