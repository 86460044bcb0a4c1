"""Encoding: chat and plain forms, end tokens and the boundary."""

import pytest

from lora_opt.data import encoding, tasks

ROWS = [{'question': 'Sky?', 'choices': ['blue', 'red'], 'answer': 0}]


def encode(toy, prompt, completion, **kwargs):
  prompt_ids, (completion_ids,) = encoding.encode_completions(
    toy, prompt, [completion], **kwargs
  )
  return toy.show(prompt_ids), toy.show(completion_ids)


def test_plain_text_is_joined_by_a_space(toy):
  assert encode(toy, 'Answer:', 'yes', chat=False, end=False) == (
    'Answer:',
    ' yes',
  )
  assert encode(toy, 'Answer:', 'yes', chat=False) == ('Answer:', ' yes<eos>')


@pytest.mark.parametrize('space', ['\n', '  ', ' \n'])
def test_white_space_at_the_end_goes_with_the_completion(toy, space):
  assert encode(toy, 'Answer:' + space, 'yes', chat=False, end=False) == (
    'Answer:',
    space + 'yes',
  )


def test_an_empty_prompt_starts_from_the_first_token(toy):
  assert encode(toy, ' ', 'yes', chat=False) == ('<bos>', 'yes<eos>')
  toy.bos_id = None
  assert encode(toy, '', 'yes', chat=False) == ('<eos>', 'yes<eos>')
  toy.eos_id = None
  with pytest.raises(ValueError, match='an empty prompt needs a token'):
    encode(toy, '', 'yes', chat=False, end=False)


def test_a_tokenizer_that_wants_a_first_token_gets_it_once(toy):
  toy.add_bos = True
  assert encode(toy, 'Why', 'so', chat=False)[0] == '<bos>Why'
  assert encode(toy, '', 'so', chat=False)[0] == '<bos>'
  assert encode(toy, 'Why', 'so', chat=True)[0].startswith('<system>')


def test_chat_is_the_template_and_ends_the_turn(toy):
  prompt, completion = encode(toy, 'Why?', 'So.', chat=True)
  assert prompt == '<system>Be kind<end>\n<user>Why?<end>\n<assistant>'
  assert completion == 'So.<end>'


def test_the_system_turn_can_be_set_or_emptied(toy):
  told, _ = encode(toy, 'Why?', 'So.', chat=True, system='Be brief')
  assert told.startswith('<system>Be brief<end>\n<user>')
  empty, _ = encode(toy, 'Why?', 'So.', chat=True, system='')
  assert empty.startswith('<system><end>\n<user>')


def test_a_template_without_an_end_gets_the_end_of_text(toy, monkeypatch):
  def bare(messages, add_generation_prompt=True):
    return '\n'.join(m['content'] for m in messages) + '\n'

  monkeypatch.setattr(toy, 'apply_chat', bare)
  assert encode(toy, 'Why?', 'So.', chat=True) == ('Why?\n', 'So.<eos>')


def test_ids_are_those_of_the_joined_text(toy):
  prompt, (ids,) = encoding.encode_completions(toy, 'Why?', ['So.'], chat=True)
  joined = toy.apply_chat([{'role': 'user', 'content': 'Why?'}]) + 'So.<end>'
  assert prompt + ids == toy.encode(joined)


def test_a_token_across_the_boundary_is_not_used(toy):
  # ': b' is one token of the joined text, but generation starts from 'A:'.
  prompt, completions = encoding.encode_completions(
    toy, 'A:', ['b', 'c'], chat=False, end=False
  )
  assert toy.encode('A: b') == [ord('A'), toy.tokens.index(': b')]
  assert prompt == toy.encode('A:')
  assert completions == [toy.encode(' b'), toy.encode(' c')]


def test_missing_parts_of_the_tokenizer_are_named(toy):
  toy.chat_template = None
  with pytest.raises(ValueError, match='no chat template: set chat=False'):
    encode(toy, 'Why?', 'So.', chat=True)
  toy.eos_id = None
  with pytest.raises(ValueError, match='no end-of-text token'):
    encode(toy, 'Why?', 'So.', chat=False)


@pytest.mark.parametrize('chat', [True, False])
def test_training_raises_what_evaluation_measures(toy, chat):
  task = tasks.MultipleChoice(name='sky', train=ROWS, eval=ROWS, chat=chat)
  example = task.examples('train')[0]
  prompt, completion = task.encode(example, toy)
  same, choices = task.encode_choices(example, toy)
  assert prompt == same
  assert completion == choices[0] != choices[1]


def test_generation_learns_to_stop(toy):
  rows = [{'question': 'Why?', 'answer': 'So.'}]
  for chat, end in ((True, '<end>'), (False, '<eos>')):
    task = tasks.Generation(name='why', train=rows, eval=rows, chat=chat)
    _, completion = task.encode(task.examples('train')[0], toy)
    assert toy.show(completion).endswith(end)


@pytest.mark.parametrize('chat', [True, False])
def test_several_are_encoded_as_each_alone(toy, chat):
  asked = [('Why?', ['So.']), ('A:', []), ('What?', ['This.', 'That.'])]
  assert encoding.encode_all(toy, asked, chat=chat) == [
    encoding.encode_completions(toy, *one, chat=chat) for one in asked
  ]


def test_chats_beyond_the_limits_of_one_call_are_rendered_one_by_one(
  toy, monkeypatch
):
  whole = toy.apply_chats

  def limited(chats, **others):
    if len(chats) > 1:
      raise ValueError('took more than 5 seconds')
    return whole(chats, **others)

  asked = [('Why?', ['So.']), ('What?', ['This.'])]
  expected = encoding.encode_all(toy, asked, chat=True)
  monkeypatch.setattr(toy, 'apply_chats', limited)
  assert encoding.encode_all(toy, asked, chat=True) == expected
