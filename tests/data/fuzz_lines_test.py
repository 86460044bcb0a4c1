"""Damaged JSON lines: a row is what its line says, or it is a bad row."""

import json
import math
import random

import pytest

from lora_opt.data import sources, tasks
from tests import fuzzing

ROW = {
  'question': 'Où est "Jo"?\u2028',
  'choices': ['ici', 'là', '😀'],
  'answer': 1,
  'more': {'score': 2.5, 'tags': [None, True, 'x'], 'n': 12345678901234567890},
}


def damaged_lines(rng):
  """Some whole lines and some damaged ones, or a file that is damaged."""
  lines = [
    fuzzing.damaged_json(ROW, rng)
    if rng.random() < 0.5
    else json.dumps(ROW, ensure_ascii=rng.random() < 0.5).encode()
    for _ in range(4)
  ]
  data = b'\n'.join(lines) + b'\n'
  return fuzzing.damaged(data, rng) if rng.random() < 0.3 else data


def reference(line):
  """What Python's json says, or None where that is not a row."""
  try:
    row = json.loads(line.decode('utf-8-sig'), object_pairs_hook=once)
    json.dumps(row, allow_nan=False)
    json.dumps(row, ensure_ascii=False).encode()
  except (ValueError, RecursionError):
    return None
  return row if isinstance(row, dict) else None


def once(pairs):
  if len(dict(pairs)) < len(pairs):
    raise ValueError('a key twice')
  return dict(pairs)


def check(folder, data):
  (folder / 'rows.jsonl').write_bytes(data)
  source = sources.JsonLines('rows.jsonl', str(folder))
  lines = data.split(b'\n')
  if not lines[-1].strip():
    lines.pop()
  size = fuzzing.outcome(lambda: len(source), 'rows.jsonl')
  if isinstance(size, Exception):
    assert not lines
    return
  assert size == len(lines)
  for number, line in enumerate(lines):
    row = fuzzing.outcome(lambda i=number: source[i], f'jsonl:{number + 1}')
    expected = reference(line)
    if isinstance(row, Exception):
      assert expected is None or 'digits' in str(row), (line, row)
    else:
      assert row == expected, line
  check_skip(source)


def check_skip(source):
  task = tasks.MultipleChoice(
    name='t', train=source, eval=source, chat=False, on_bad='skip'
  )
  facts = fuzzing.outcome(task.facts, 'rows.jsonl')
  if isinstance(facts, Exception):
    assert 'none can be used' in str(facts)
    return
  facts = facts['train']
  assert facts['examples'] + facts['bad_rows'] == facts['rows']
  for example in task.examples('train'):
    text = example.prompt + ''.join(example.choices)
    assert text.encode()
    assert example.choices[example.answer] == example.completion
    assert not isinstance(example.row['answer'], bool)
    assert math.isfinite(example.answer)


def test_damaged_lines_are_bad_rows(tmp_path):
  for _, rng in fuzzing.seeds(300):
    check(tmp_path, damaged_lines(rng))


@pytest.mark.long
def test_many_damaged_lines_are_bad_rows(tmp_path):
  for _, rng in fuzzing.seeds(20_000, start=1000):
    check(tmp_path, damaged_lines(rng))


LINE = json.dumps({'question': 'q', 'answer': 'a'})
BAD = {
  'NaN': ('{"question": NaN, "answer": "a"}', 'NaN is not a number'),
  'NaN unused': ('{"question": "q", "answer": "a", "x": [NaN]}', 'NaN is no'),
  '1e400': ('{"question": 1e400, "answer": "a"}', "'1e400' is too large"),
  'surrogate': (r'{"question": "\ud800", "answer": "a"}', 'half a surrogate'),
  'key': (r'{"\udfff": 1, "question": "q"}', 'half a surrogate'),
  'twice': ('{"question": "q", "question": "r"}', "'question' occurs twice"),
  'deep': ('[' * 10**5 + ']' * 10**5, 'nested more than'),
  'deep object': ('{"a":' * 10**5 + '1' + '}' * 10**5, 'nested more than'),
  'digits': ('{"question": ' + '9' * 5000 + '}', '5000 digits'),
  'long line': ('{"question": "' + 'a' * 2**24 + '"}', 'bytes, at most'),
  'long text': (
    '{"question": "' + 'a' * 10**6 + '", "answer": "a"}',
    'more than max_characters=1,000,000',
  ),
  'null': ('{"question": null, "answer": "a"}', 'must be text, found NoneType'),
  'true': ('{"question": true, "answer": "a"}', 'must be text, found bool'),
  'float': ('{"question": "q", "answer": 1e-9}', 'can be written in several'),
  'object': ('{"question": "q", "answer": {"a": 1}}', 'must be text, found di'),
}


@pytest.mark.parametrize('kind', BAD)
def test_one_bad_line_is_one_bad_row(tmp_path, kind):
  bad, message = BAD[kind]
  (tmp_path / 'rows.jsonl').write_text(f'{LINE}\n{bad}\n{LINE}\n')
  source = sources.JsonLines('rows.jsonl', str(tmp_path))

  def task(on_bad):
    return tasks.Generation(
      name='t', train=source, eval=source, chat=False, on_bad=on_bad
    )

  with pytest.raises(ValueError, match=rf'rows\.jsonl:2: .*{message}') as error:
    task('error').validate()
  assert len(str(error.value)) < 400
  skipping = task('skip')
  skipping.validate()
  facts = skipping.facts()['train']
  assert (facts['examples'], facts['bad_rows']) == (2, 1)


@pytest.mark.parametrize('kind', ['NaN', 'inf', 'surrogate', 'huge', 'bytes'])
def test_rows_given_directly_are_held_to_the_same(kind):
  value = {
    'NaN': math.nan,
    'inf': -math.inf,
    'surrogate': 'a\ud800',
    'huge': 10**5000,
    'bytes': b'a',
  }[kind]
  good = {'question': 'q', 'answer': 'a', 'list': ['a', 'b'], 'number': 1}
  tasks_of = {
    'question': lambda rows: tasks.Generation(name='t', train=rows, eval=rows),
    'list': lambda rows: tasks.Generation(
      name='t', train=rows, eval=rows, references='list'
    ),
    'number': lambda rows: tasks.Regression(
      name='t', train=rows, eval=rows, number='number'
    ),
  }
  for field, make in tasks_of.items():
    row = good | {field: [value, 'b'] if field == 'list' else value}
    with pytest.raises(ValueError, match=f'train row 1: .*{field}') as error:
      make([good, row]).validate()
    assert len(str(error.value)) < 300


def test_numbers_are_written_out_where_there_is_one_way():
  def prompt(value):
    rows = [{'question': value, 'answer': 'a'}]
    task = tasks.Generation(name='t', train=rows, eval=rows)
    return task.examples('train')[0].prompt

  rng = random.Random(0)
  for value in (
    0,
    -7,
    2**64,
    2.5,
    -0.25,
    *(rng.randrange(10**9) for _ in 'ab'),
  ):
    assert prompt(value) == str(value)
  for value in (1e22, 1e-7, -math.inf, 10**41, True):
    with pytest.raises(ValueError, match="'question' must be text"):
      prompt(value)


def test_many_bad_rows_take_no_room(tmp_path):
  (tmp_path / 'rows.jsonl').write_text(f'{LINE}\n' + 'x' * 99 + '\n' * 9999)
  source = sources.JsonLines('rows.jsonl', str(tmp_path))
  task = tasks.Generation(name='t', train=source, eval=source, on_bad='skip')
  facts = task.facts()['train']
  assert facts['bad_rows'] == 9999 and len(facts['first_bad_rows']) == 3


def test_many_choices_of_a_long_prompt_are_a_bad_row():
  row = {'question': 'a' * 10**5, 'choices': ['b'] * 200, 'answer': 0}
  task = tasks.MultipleChoice(name='t', train=[row], eval=[row])
  with pytest.raises(ValueError, match='200 choices, more than max_characters'):
    task.validate()
