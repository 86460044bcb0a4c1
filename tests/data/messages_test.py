"""Messages of rows: two forms, and what is wrong with the others."""

import json

import pytest

from lora_opt.data import messages, sources, tasks

OPENAI = [
  {'role': 'system', 'content': 'Be kind'},
  {'role': 'user', 'content': 'Hi'},
  {'role': 'assistant', 'content': 'Hello'},
]
SHAREGPT = [
  {'from': 'system', 'value': 'Be kind'},
  {'from': 'human', 'value': 'Hi'},
  {'from': 'gpt', 'value': 'Hello'},
]
CALL = {'name': 'weather', 'arguments': {'city': 'Ulm'}}
USER, ANSWER = OPENAI[1:]


def dialogue(row, **settings):
  task = tasks.Conversation(name='t', train=[row], eval=[row], **settings)
  (example,) = task.examples('train')
  return example.dialogues[0]


def test_both_forms_are_the_same():
  ours = dialogue({'messages': OPENAI})
  assert ours.messages == tuple(OPENAI)
  assert ours.trained == (False, False, True)
  theirs = dialogue({'talk': SHAREGPT}, messages='talk')
  assert theirs._replace(place='') == ours._replace(place='')


def test_parts_and_what_follows_the_last_answer():
  parts = [{'type': 'text', 'text': 'Hel'}, {'type': 'text', 'text': 'lo'}]
  found = dialogue(
    {'messages': [USER, {'role': 'assistant', 'content': parts}, USER]}
  )
  assert found.messages == (USER, ANSWER)


def test_weights_say_which_answers_are_learned():
  silent = {**ANSWER, 'weight': 0}
  found = dialogue({'messages': [USER, silent, USER, {**ANSWER, 'weight': 1}]})
  assert found.learned == [3]
  assert 'weight' not in found.messages[1]
  found = dialogue({'messages': [USER, ANSWER, USER, silent]})
  assert len(found.messages) == 2


def test_the_system_turn_of_the_task_is_for_rows_without_one():
  found = dialogue({'messages': OPENAI[1:]}, system='Be brief')
  assert found.messages[0]['content'] == 'Be brief'
  assert found.learned == [2]
  found = dialogue({'messages': OPENAI}, system='Be brief')
  assert found.messages[0]['content'] == 'Be kind'


@pytest.mark.parametrize('as_text', [True, False])
def test_tools_and_calls_in_both_forms(as_text):
  tools = [{'type': 'function', 'function': {'name': 'weather'}}]
  arguments = CALL['arguments']
  call = CALL | {'arguments': json.dumps(arguments) if as_text else arguments}
  calls = [{'id': 'a', 'type': 'function', 'function': call}]
  row = {
    'messages': [USER, {'role': 'assistant', 'content': None,
                        'tool_calls': calls},
                 {'role': 'tool', 'content': '', 'tool_call_id': 'a'}, ANSWER],
    'tools': json.dumps(tools) if as_text else tools,
  }  # fmt: skip
  found = dialogue(row, tools='tools')
  assert found.tools == tuple(tools)
  assert found.messages[1] == {
    'role': 'assistant',
    'content': '',
    'tool_calls': [{'id': 'a', 'type': 'function', 'function': CALL}],
  }
  assert found.learned == [1, 3]
  theirs = [
    {'from': 'human', 'value': 'Hi'},
    {'from': 'function_call', 'value': json.dumps(CALL)},
    {'from': 'observation', 'value': ''},
    {'from': 'gpt', 'value': 'Hello'},
  ]
  found = dialogue({'messages': theirs}, tools='tools')
  assert found.tools is None
  assert found.messages[1]['tool_calls'][0]['function'] == CALL


@pytest.mark.parametrize(
  ('messages', 'problem'),
  [
    (None, "field 'messages' must be a list of messages, found null"),
    ([], 'must be a list of messages'),
    ('Hi', 'must be a list of messages, found a text'),
    (['Hi'], 'message 0'),
    ([USER], 'no answer that is to be learned'),
    ([USER, {**ANSWER, 'weight': 0}], 'no answer that is to be learned'),
    ([USER, {**ANSWER, 'weight': 0.5}], 'message 1: weight 0.5 must be 0 or 1'),
    ([{'role': 'human', 'content': 'Hi'}, ANSWER], "message 0: role 'human'"),
    ([{'from': 'alice', 'value': 'Hi'}, ANSWER], "message 0: 'from' 'alice'"),
    ([{'text': 'Hi'}, ANSWER], "there must be 'role'.* its keys are 'text'"),
    ([{'role': 'user'}, ANSWER], 'message 0: content'),
    ([{'role': 'user', 'content': 3}, ANSWER], 'message 0: content'),
    ([USER, {'role': 'assistant', 'content': ' '}], '1: the answer is empty'),
    ([{'role': 'user', 'content': '\ud800'}, ANSWER], 'half a surrogate'),
    ([{'role': 'user', 'content': [{'type': 'image_url'}]}, ANSWER],
     "a part of type 'image_url'; the models here read text alone"),
    ([{**USER, 'tool_calls': [CALL]}, ANSWER], 'user cannot call tools'),
    ([USER, {'role': 'assistant', 'tool_calls': [{'function': {}}]}],
     'message 1, tool call 0: name'),
    ([USER, {'role': 'assistant', 'tool_calls': [CALL | {'arguments': '{'}]}],
     'tool call 0: arguments'),
    ([{'from': 'function_call', 'value': 'no JSON'}], 'message 0'),
  ],
)  # fmt: skip
def test_bad_rows_are_named_by_file_line_and_message(
  messages, problem, tmp_path
):
  file = tmp_path / 'a.jsonl'
  rows = [{'messages': OPENAI}, {'messages': messages}]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  source = sources.JsonLines(str(file))
  task = tasks.Conversation(name='t', train=source, eval=source)
  with pytest.raises(ValueError, match=problem) as caught:
    task.validate()
  assert f'{file}:2' in str(caught.value)
  for turns in ('all', 'each'):
    task = tasks.Conversation(
      name='t', train=source, eval=source, on_bad='skip', turns=turns
    )
    task.validate()
    assert task.facts()['train']['bad_rows'] == 1
    assert len(task.examples('train')) == 1


@pytest.mark.parametrize('tools', ['no JSON', [3], [{'name': 3}], {'a': 1}, 7])
def test_bad_tools(tools):
  with pytest.raises(ValueError, match="train row 0: field 'tools'"):
    dialogue({'messages': OPENAI, 'tools': tools}, tools='tools')


@pytest.mark.parametrize(
  'settings', [{'turns': 'some'}, {'prompt': '{a}'}, {'chat': False}]
)
def test_settings_of_other_tasks_are_refused(settings):
  with pytest.raises(ValueError, match="task 't'"):
    tasks.Conversation(name='t', train=[{}], eval=[{}], **settings)


@pytest.mark.parametrize('field', ['content', *messages.TEXTS])
def test_every_text_of_a_message_counts_as_characters(field):
  """A limit on the characters of a row holds for whatever a template writes."""
  talk = [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Hello', field: 'a' * 5000},
  ]
  assert 5000 <= dialogue({'messages': talk}).characters() < 5200
