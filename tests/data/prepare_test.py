"""Data sets are prepared from their publishers' files, rows checked."""

import hashlib
import json
import subprocess
import sys

import pytest

from lora_opt.data import sources
from lora_opt.data.prepare import __main__ as command_line
from lora_opt.data.prepare import builder, readers, recipes
from tests.data import raw_files


def test_every_recipe_has_made_rows():
  assert set(raw_files.RAW) == set(recipes.RECIPES)


@pytest.mark.parametrize('name', recipes.RECIPES)
def test_rows_get_the_fields_of_our_tasks(prepared, name):
  raw = raw_files.RAW[name]
  source = sources.Folder(name, raw.split, str(prepared))
  assert source[0] == raw.row
  made_of = sources.describe(source)['made_of']['splits'][raw.split]
  assert made_of['rows'] == len(source) and made_of['bad_rows'] == 0
  (first, *_) = made_of['raw_files']
  text = raw.files[first['file'].rpartition(f'/{name}/')[2]].encode()
  assert first['sha256'] == hashlib.sha256(text).hexdigest()
  assert first['bytes'] == len(text)
  assert 'tensorflow' not in sys.modules


BAD = {
  'gsm8k': ('train.jsonl', '{"question": "?"}', "KeyError 'answer'"),
  'arc_easy': (
    'ARC-Easy-Train.jsonl',
    json.dumps({'question': {'stem': '?', 'choices': []}, 'answerKey': 'A'}),
    "'A' is not in list",
  ),
  'boolq': (
    'train.jsonl',
    '{"question": "a", "passage": "b", "answer": "yes"}',
    "'answer' must be bool, found 'yes'",
  ),
  'wnli': ('train.tsv', '1\ta\tb', '3 fields, not 4'),
  'cola': ('train.tsv', 'x\t7\t\tSo.', "label '7' is none of 0 to 1"),
  'winogrande': (
    'train_xl.jsonl',
    '{"sentence": "No blank.", "option1": "a", "option2": "b", "answer": "1"}',
    'needs one blank',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_rows_are_refused_by_file_and_line_or_counted(tmp_path, name):
  file, bad, message = BAD[name]
  raw = raw_files.write(name, tmp_path / 'raw')
  (path,) = raw.rglob(file)
  count = len(path.read_text().splitlines())
  with path.open('a') as opened:
    opened.write(bad + '\n')
  with pytest.raises(ValueError, match=rf'{file}:{count + 1}: .*{message}'):
    builder.prepare(name, raw, tmp_path / 'refused')
  info = builder.prepare(name, raw, tmp_path / 'data', on_bad='skip')
  train = info.metadata['splits']['train']
  assert train['bad_rows'] == 1
  assert message in train['first_bad_rows'][0]
  assert info.splits['train'].num_examples == train['rows'] > 0


def test_missing_files_are_named_with_their_home(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r'train\.jsonl or train\.jsonl; .*openai'
  ):
    builder.prepare('gsm8k', tmp_path, tmp_path)
  with pytest.raises(ValueError, match="no recipe for 'gsm9k'; there are gs"):
    builder.prepare('gsm9k', tmp_path, tmp_path)


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_a_sentence_may_hold_a_separator_of_lines(tmp_path, end):
  path = tmp_path / 'rows.tsv'
  lines = ['sentence\tlabel', 'one \u2028 "two\x0b\t1', '', 'three\t0', '']
  path.write_bytes(end.join(lines).encode())
  assert list(readers.table(path)) == [
    (f'{path}:2', {'sentence': 'one \u2028 "two\x0b', 'label': '1'}),
    (f'{path}:4', {'sentence': 'three', 'label': '0'}),
  ]


def test_labels_must_be_as_many_as_rows(tmp_path):
  raw = raw_files.write('piqa', tmp_path)
  (raw / 'dev-labels.lst').write_text('1\n0\n')
  with pytest.raises(ValueError, match=r'dev\.jsonl has 1 rows, .* has 2'):
    builder.prepare('piqa', raw, tmp_path / 'data')


def test_one_command_prepares(tmp_path):
  raw = raw_files.write('gsm8k', tmp_path / 'raw')
  command = [sys.executable, '-m', 'lora_opt.data.prepare', 'gsm8k']
  command += ['--raw', str(raw), '--data_dir', str(tmp_path / 'data')]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'gsm8k train: 2 rows, 0 left out' in done.stdout
  # What is prepared is not read again.
  info = builder.prepare('gsm8k', tmp_path / 'nowhere', tmp_path / 'data')
  assert info.splits['test'].num_examples == 2


def test_a_mistake_is_one_line(tmp_path, monkeypatch):
  flags = ['x', 'gsm8k', '--raw', str(tmp_path), '--data_dir', str(tmp_path)]
  monkeypatch.setattr(sys, 'argv', flags)
  with pytest.raises(SystemExit, match=r"^error: gsm8k, split 'train': "):
    command_line.main()
