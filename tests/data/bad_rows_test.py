"""Rows that cannot be used: refused, or left out and counted, by place."""

import hashlib
import json
import logging as python_logging

import pytest

from lora_opt.data import batching, sources, tasks

GOOD = [
  {'question': f'{i}?', 'choices': ['yes', 'no'], 'answer': i % 2}
  for i in range(4)
]
BAD = {
  'broken line': (b'{"question": "2?"', 'not JSON'),
  'blank line': (b'', 'not JSON'),
  'no object': (b'[1, 2]', 'expected a JSON object, found list'),
  'not UTF-8': (b'{"question": "\xff"}', 'not UTF-8: byte 0xff'),
  'missing field': ({'question': '?', 'answer': 0}, "no field 'choices'"),
  'wrong type': (GOOD[0] | {'answer': '0'}, 'the index of a choice'),
  'no such label': (GOOD[0] | {'answer': 9}, "'answer' is 9"),
  'empty answer': (GOOD[0] | {'choices': ['yes', '']}, "texts, found ''"),
  'no question': (GOOD[0] | {'question': None}, 'must be text, found NoneType'),
}


def line(row):
  return row if isinstance(row, bytes) else json.dumps(row).encode()


def source(folder, bad=(), name='train.jsonl'):
  """Two good rows, the bad ones, two good rows."""
  rows = [*GOOD[:2], *bad, *GOOD[2:]]
  (folder / name).write_bytes(b'\n'.join(map(line, rows)) + b'\n')
  return sources.JsonLines(name, str(folder))


def task(train, **settings):
  return tasks.MultipleChoice(
    name='yes', train=train, eval=GOOD, chat=False, **settings
  )


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, kind):
  row, message = BAD[kind]
  with pytest.raises(ValueError, match=rf'train\.jsonl:3: .*{message}'):
    task(source(tmp_path, [row])).validate()


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_row_is_left_out_and_counted(tmp_path, kind, toy):
  row, message = BAD[kind]
  skipping = task(source(tmp_path, [row, row]), on_bad='skip')
  skipping.validate()
  assert [e.prompt for e in skipping.examples('train')] == [
    e.prompt for e in task(GOOD).examples('train')
  ]
  facts = skipping.facts()['train']
  assert (facts['rows'], facts['examples'], facts['bad_rows']) == (6, 4, 2)
  assert 'train.jsonl:3: ' in facts['first_bad_rows'][0]
  assert message.split('.*')[0] in facts['first_bad_rows'][0]
  encoded = batching.encode_split(skipping, toy, 'train', length=60)
  assert len(encoded.examples) == 4


def test_bad_rows_are_logged(tmp_path, caplog):
  bad = [row for row, _ in BAD.values()]
  with caplog.at_level(python_logging.WARNING, 'absl'):
    task(source(tmp_path, bad), on_bad='skip').validate()
  assert "task 'yes': 9 of 13 train rows cannot be used" in caplog.text
  assert 'train.jsonl:3' in caplog.text


def test_nothing_but_bad_rows_is_refused():
  with pytest.raises(ValueError, match=r'train split is empty.*2 rows, none'):
    task([{}, {}], on_bad='skip').validate()


def test_an_empty_completion_is_bad_too():
  rows = [{'question': 'a', 'answer': text} for text in ('b', ' ', '')]
  empty = tasks.Generation(name='g', train=rows, eval=rows[:1], on_bad='skip')
  empty.validate()
  assert empty.facts()['train']['bad_rows'] == 2


def test_an_unknown_policy_is_refused_at_once():
  with pytest.raises(ValueError, match="on_bad='drop' must be one of err"):
    task(GOOD, on_bad='drop')


def test_evaluation_alone_looks_at_no_training_row():
  task([{}]).validate(['eval'])
  with pytest.raises(ValueError, match='train row 0'):
    task([{}]).validate()


def test_overlapping_questions_can_be_left_out():
  both = task(GOOD[:3])
  assert both.overlap() == [0, 1, 2]
  apart = task(GOOD[:3], leave_out_overlap=True)
  assert [e.prompt for e in apart.examples('eval')] == ['Question: 3?\nAnswer:']
  assert apart.overlap() == []
  assert apart.facts()['overlap'] == both.facts()['overlap'] == 3
  assert apart.facts()['eval']['examples'] == 1
  with pytest.raises(ValueError, match='eval split is empty'):
    task(GOOD, leave_out_overlap=True).examples('eval')


def test_the_facts_identify_the_file(tmp_path):
  facts = task(source(tmp_path)).facts()
  data = (tmp_path / 'train.jsonl').read_bytes()
  assert facts['train']['sha256'] == hashlib.sha256(data).hexdigest()
  assert facts['train']['bytes'] == len(data)
  assert facts['eval']['source'] == 'list'
  json.dumps(facts)
