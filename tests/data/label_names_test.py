"""Sources that say what their numbers of labels are called: names decide."""

import json

import pyarrow as pa
import pytest
from absl import logging
from pyarrow import parquet

from lora_opt.data import sources, tasks
from lora_opt.data.sources import _tfds_folder


def parquet_source(folder, names, *, name='train', column='label'):
  """A parquet file as `datasets` writes it, of the labels 0, 1, ..."""
  count = len(names) if names else 3
  table = pa.table({'text': ['x'] * count, 'label': list(range(count))})
  kinds = {'text': {'dtype': 'string', '_type': 'Value'}}
  if names:
    kinds[column] = {'names': list(names), '_type': 'ClassLabel'}
  content = json.dumps({'info': {'features': kinds}}) if names else '{}'
  table = table.replace_schema_metadata({'huggingface': content})
  parquet.write_table(table, folder / f'{name}-00000-of-00001.parquet')
  return sources.HuggingFace(str(folder), name)


def task(source, words, classes=None):
  return tasks.Classification(
    name='nli',
    train=source,
    eval=source,
    prompt='{text}',
    label_names=words,
    classes=classes,
  )


def completions(task):
  return [example.completion for example in task.examples('train')]


NLI = ('entailment', 'neutral', 'contradiction')


def test_numbers_mean_what_the_source_calls_them(tmp_path):
  source = parquet_source(tmp_path, NLI[::-1])
  assert source.class_names('label') == NLI[::-1]
  assert source.class_names('text') is None
  words = ('yes', 'maybe', 'no')
  assert completions(task(source, words, NLI)) == ['no', 'maybe', 'yes']
  # The words may be the names themselves, in any case.
  words = ('Neutral', 'Contradiction', 'Entailment')
  found = completions(task(source, words))
  assert found == ['Contradiction', 'Neutral', 'Entailment']


def test_without_names_numbers_are_places(tmp_path):
  source = parquet_source(tmp_path, None)
  assert completions(task(source, NLI)) == list(NLI)
  rows = [{'text': 'x', 'label': i} for i in range(3)]
  assert completions(task(rows, NLI)) == list(NLI)


@pytest.mark.parametrize(
  ('words', 'classes'),
  [(('x', 'y', 'z'), ('a', 'b', 'c')), (('yes', 'no'), None)],
)
def test_other_labels_are_refused(tmp_path, words, classes):
  source = parquet_source(tmp_path, NLI)
  with pytest.raises(ValueError, match="calls the labels of field 'label'"):
    task(source, words, classes).validate()


def test_words_that_are_no_names_are_said(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *a: said.append(text % a)
  )
  source = parquet_source(tmp_path, NLI)
  one = task(source, ('yes', 'maybe', 'no'))
  one.validate(['train'])
  assert completions(one) == ['yes', 'maybe', 'no']
  (line,) = said
  assert 'calls the labels entailment, neutral, contradiction' in line
  task(source, ('yes', 'maybe', 'no'), NLI).validate()
  assert len(said) == 1


def test_files_of_one_split_agree(tmp_path):
  parquet_source(tmp_path, NLI)
  whole = tmp_path / 'train-00000-of-00001.parquet'
  whole.rename(tmp_path / 'train-00000-of-00002.parquet')
  parquet_source(tmp_path, NLI[::-1])
  whole.rename(tmp_path / 'train-00001-of-00002.parquet')
  source = sources.HuggingFace(str(tmp_path), 'train')
  with pytest.raises(ValueError, match='and in another file of the split'):
    source.class_names('label')


@pytest.mark.parametrize(
  'content',
  ['[', '[]', '{"info": 3}', '{"info": {"features": [3]}}', '"\\ud800"'],
)
def test_what_is_no_description_is_named(tmp_path, content):
  table = pa.table({'text': ['x'], 'label': [0]})
  table = table.replace_schema_metadata({'huggingface': content})
  path = tmp_path / 'train-00000-of-00001.parquet'
  parquet.write_table(table, path)
  with pytest.raises(ValueError, match=r'parquet: its features'):
    sources.HuggingFace(str(tmp_path), 'train').class_names('label')


def test_tfds_keeps_names_in_a_file(tmp_path):
  (tmp_path / 'label.labels.txt').write_text('neg\n\npos \n', encoding='utf-8')
  assert _tfds_folder.label_names(tmp_path, 'label') == ('neg', 'pos')
  assert _tfds_folder.label_names(tmp_path, 'other') is None
  (tmp_path / 'bad.labels.txt').write_bytes(b'\xff')
  with pytest.raises(ValueError, match=r'bad.labels.txt'):
    _tfds_folder.label_names(tmp_path, 'bad')
