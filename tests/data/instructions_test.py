"""Sources that put rows as instructions."""

import json
import resource

import pytest

from lora_opt.data import sources, tasks
from tests import fuzzing

META = {
  'categories': ['Naming'],
  'definition': 'Name it',
  'positive_examples': [
    {'input': 'big', 'output': 'Jumbo', 'explanation': 'as the elephant'},
    {'input': 'small.', 'output': 'Mini!'},
    {'input': 'third', 'output': 'Tertius'},
  ],
}
LINES = ['{"input": "red", "output": ["Rosso", "Rot"]}', '{"input": "b", ']
LINES += ['{"input": "green"}', '{"input": "blue", "output": "Blau"}']


@pytest.fixture
def folder(tmp_path):
  for name, category in (('task1', 'Naming'), ('task2', 'Colours')):
    meta = {'task': name} | META | {'categories': [category]}
    (tmp_path / f'{name}.meta.json').write_text(json.dumps(meta))
    (tmp_path / f'{name}.train.jsonl').write_text('\n'.join(LINES) + '\n')
  return tmp_path


def instructions(folder, **settings):
  files = sources.Folder(folder.name, 'train', str(folder.parent))
  return sources.NaturalInstructions(files, **settings)


def test_rows_show_definition_and_examples(folder):
  row = instructions(folder, positive=2, explanations=True)[0]
  assert row['definition'] == 'Name it.'
  assert row['input'] == 'red.'
  assert (row['output'], row['outputs']) == ('Rosso', ['Rosso', 'Rot'])
  assert row['examples'] == (
    ' Positive Example 1 -\nInput: big.\n Output: Jumbo.\n'
    ' Explanation: as the elephant.\n\n'
    ' Positive Example 2 -\nInput: small.\n Output: Mini!\n\n'
  )
  assert instructions(folder, positive=0)[0]['examples'] == ''
  assert instructions(folder, positive=9)[0]['examples'].count('Example') == 3


def test_tasks_and_categories_are_chosen(folder):
  by_task = instructions(folder, tasks=['task2'])
  by_category = instructions(folder, categories=['Colours', 'None'])
  for chosen in (by_task, by_category):
    # Lines that cannot be read belong to no task: the policy sees all four.
    assert len(chosen) == 6 and len(instructions(folder)) == 8
    assert [chosen[i]['task'] for i in (2, 5)] == ['task2'] * 2
    assert chosen.where(2).endswith('task2.train.jsonl:1')
  assert len(instructions(folder, tasks=['task1'], limit=1)) == 1
  facts = sources.describe(by_task)
  assert facts['tasks'] == ['task2'] and len(facts['files']) == 4
  (folder / 'task1.train.jsonl').write_text(LINES[0])
  (folder / 'task2.train.jsonl').write_text(LINES[0])
  with pytest.raises(ValueError, match=r"no row of tasks=\['task3'\]"):
    len(instructions(folder, tasks=['task3']))


def test_bad_lines_are_left_to_the_policy(folder):
  def task(on_bad):
    return tasks.Generation(
      name='names',
      train=instructions(folder),
      eval=[{'input': 'x', 'output': 'y'}],
      prompt='{input}',
      completion='{output}',
      on_bad=on_bad,
    )

  with pytest.raises(ValueError, match=r'task1\.train\.jsonl:2: not JSON'):
    task('error').validate()
  facts = task('skip').facts()['train']
  assert (facts['rows'], facts['examples'], facts['bad_rows']) == (8, 4, 4)
  assert "task1.train.jsonl:3: no field 'output'" in facts['first_bad_rows'][1]


def test_rows_of_another_kind_are_named():
  source = sources.NaturalInstructions([{'question': '?'}])
  with pytest.raises(ValueError, match='no row of Super-Nat.*example_inp'):
    source[0]


@pytest.mark.parametrize(
  ('word', 'row', 'message'),
  [
    (
      'answer',
      {'choices': ['a', 'b'], 'answer': 2},
      'answer 2 is not an index',
    ),
    (
      'answer',
      {'choices': ['a', 'b'], 'answer': 'a'},
      "answer 'a' is not an in",
    ),
    ('answer', {'choices': ['a', 'b'], 'answer': True}, 'answer True is no'),
    (
      'answer',
      {'choices': ['a', None], 'answer': 0},
      'choices: expected a text',
    ),
    ('answer', {'choices': 'ab', 'answer': 0}, 'choices: expected a list'),
    ('answer', ['a'], 'expected a dict, found list'),
    (None, {'answer': 1}, 'answer must be a bool, found 1'),
  ],
)
def test_choices_to_list_are_checked(word, row, message):
  with pytest.raises(ValueError, match=f'data row 0: {message}'):
    sources.ListedChoices([row], word)[0]


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('outputs', 'Rosso', 'outputs: expected a list of texts, not empty'),
    ('outputs', [], 'outputs: expected a list of texts, not empty'),
    ('outputs', [None], 'outputs: expected a text, found None'),
    ('input', None, 'input: expected a text, found None'),
    ('definition', ['a'], 'definition: expected a text'),
    ('example_inputs', 'a', 'example_inputs: expected a list of texts'),
    ('example_outputs', ['a', 'b'], 'zip'),
  ],
)
def test_fields_are_not_taken_for_something_else(field, value, message):
  row = {'task': 't', 'categories': [], 'definition': 'd', 'input': 'i'}
  row |= {f'example_{n}s': ['x'] for n in ('input', 'output', 'explanation')}
  row['outputs'] = ['o']
  assert sources.NaturalInstructions([row])[0]['output'] == 'o'
  source = sources.NaturalInstructions([row | {field: value}])
  with pytest.raises(ValueError, match=f'data row 0: .*{message}'):
    source[0]


@pytest.mark.parametrize('name', ['tasks', 'categories'])
def test_a_text_is_no_list_of_names(folder, name):
  with pytest.raises(ValueError, match=f"{name} must be a list of texts, .*'t"):
    len(instructions(folder, **{name: 'task12'}))


def test_damaged_files_are_named(folder):
  good = (folder / 'task1.meta.json').read_bytes()
  whole = list(instructions(folder, tasks=['task2'])[i] for i in (2, 5))
  for _, rng in fuzzing.seeds(200):
    file = folder / 'task1.meta.json'
    file.write_bytes(fuzzing.damaged_json(json.loads(good), rng))
    source = instructions(folder)
    size = fuzzing.outcome(lambda s=source: len(s), 'task1.meta.json')
    for place in range(0 if isinstance(size, Exception) else size):
      fuzzing.outcome(lambda s=source, i=place: s[i], f'jsonl:{place % 4 + 1}')
  file.write_bytes(good)
  assert list(instructions(folder, tasks=['task2'])[i] for i in (2, 5)) == whole


def test_more_tasks_than_files_can_be_open(folder):
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  meta = (folder / 'task1.meta.json').read_text()
  for number in range(200):
    (folder / f'many{number}.meta.json').write_text(meta)
    (folder / f'many{number}.train.jsonl').write_text(LINES[0])
  resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
  try:
    source = sources.InstructionFiles(str(folder), 'train')
    assert source[0]['input'] == source[199]['input'] == 'red'
    assert [source[i]['input'] for i in range(200)] == ['red'] * 200
    few = sources.InstructionFiles(str(folder), 'train', limit=3)
    assert len(few) == 3 and few.where(2).endswith('many10.train.jsonl:1')
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
