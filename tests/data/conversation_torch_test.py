"""Conversations against transformers: its ids, and its assistant mask."""

import dataclasses
import functools
import importlib.util
import pathlib

import pytest

from lora_opt.data.conversation import encode_dialogue
from lora_opt.data.dialogue import Dialogue
from lora_opt.data.turns import cut_of
from tests.data import templates
from tests.data.chat_torch_test import theirs
from tests.data.conversation_test import APART, THREE, merging, talk

TALKS = (THREE, talk('Hi', '<é> 🙂', 'x\n\n', 'two\n'), talk('a', ' b '))
# SmolLM 3 has the header within, and a line's end: they are not learned here.
WIDE = (
  "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
  "{{ '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' }}"
  "{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role + '\\n' + "
  "m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Only the last answer is marked.
LAST = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
  "{% if m.role == 'assistant' and loop.last %}{% generation %}"
  "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
  "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def mask_of(tokenizer, dialogue: Dialogue):
  found = theirs(tokenizer).apply_chat_template(
    list(dialogue.messages), return_assistant_tokens_mask=True
  )
  return found['input_ids'], list(map(bool, found['assistant_masks']))


@pytest.mark.parametrize('name', list(templates.TEMPLATES))
@pytest.mark.parametrize('dialogue', TALKS)
def test_ids_are_those_of_transformers(name, dialogue):
  tokenizer = templates.tokenizer_of(name)
  if name in APART:
    dialogue = dialogue.up_to(dialogue.learned[-1])
  ids, _ = encode_dialogue(tokenizer, dialogue)
  ids = ids[:-1] if name == 'without an end' else ids
  messages = dialogue.messages
  if name == 'parts':
    messages = [
      {**m, 'content': [{'type': 'text', 'text': m['content']}]}
      for m in messages
    ]
  found = theirs(tokenizer).apply_chat_template(list(messages))['input_ids']
  assert found[: len(ids)] == ids
  rest = tokenizer.core.decode(found[len(ids) :], skip_special_tokens=False)
  assert rest.strip() in ('', '<|endoftext|>')


@pytest.mark.parametrize('dialogue', TALKS)
def test_masks_are_those_of_transformers(dialogue):
  tokenizer = templates.tokenizer_of('marked')
  ids, learned = encode_dialogue(tokenizer, dialogue)
  expected, mask = mask_of(tokenizer, dialogue)
  assert expected[: len(ids)] == ids
  assert mask[: len(ids)] == learned
  assert not any(mask[len(ids) :])


@pytest.mark.parametrize('dialogue', TALKS)
def test_tokens_across_a_mark_are_those_of_transformers(dialogue):
  plain = merging()
  marks = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'bot: ' }}"
    "{% generation %}{{ m.content + '.' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.role + ': ' + m.content + '.\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'bot: ' }}{% endif %}"
  )
  tokenizer = dataclasses.replace(plain, chat_template=marks)
  ids, learned = encode_dialogue(tokenizer, dialogue)
  expected, mask = mask_of(tokenizer, dialogue)
  assert expected[: len(ids)] == ids
  assert mask[: len(ids)] == learned


def test_headers_within_the_marks_are_not_learned():
  tokenizer = dataclasses.replace(
    templates.tokenizer_of('marked'), chat_template=WIDE
  )
  ids, learned = encode_dialogue(tokenizer, THREE)
  expected, mask = mask_of(tokenizer, THREE)
  assert expected[: len(ids)] == ids
  same = templates.tokenizer_of('marked')
  assert (ids, learned) == encode_dialogue(same, THREE)
  header = same.encode('<|im_start|>assistant\n')
  assert all(m >= x for m, x in zip(mask, learned, strict=False))
  assert sum(mask) - sum(learned) == 3 * (len(header) + len('\n'))


def test_answers_that_are_not_marked_are_not_learned():
  tokenizer = dataclasses.replace(
    templates.tokenizer_of('marked'), chat_template=LAST
  )
  ids, learned = encode_dialogue(tokenizer, THREE)
  _, mask = mask_of(tokenizer, THREE)
  assert mask[: len(ids)] == learned
  assert sum(learned) == 30 + 1


@functools.cache
def published():
  """TRL has templates as their models have them, and others with marks."""
  found = importlib.util.find_spec('trl')
  if found is None:
    return {}
  folder = pathlib.Path(found.origin).parent / 'chat_templates'
  return {
    file.stem.removesuffix('_training'): (
      file.with_stem(file.stem.removesuffix('_training')).read_text(),
      file.read_text(),
    )
    for file in sorted(folder.glob('*_training.jinja'))
  }


@pytest.mark.parametrize('name', published())
def test_masks_are_those_of_trl(name):
  """Of the published template ours, of that with marks transformers'.

  Where a template writes turns otherwise once others follow, TRL changes that
  too: of those the first answer is compared, behind which nothing stands.
  TRL marks some headers, thoughts that open a prompt, and what a template
  writes behind the end of a turn: those are not learned here. Whatever is,
  TRL's marks have too, and nothing else of the conversation.
  """
  original, training = published()[name]
  # With the tokens that the model has: in bytes transformers takes the place of
  # gpt-oss's marks for another.
  tokenizer = templates.tokenizer_of(
    'gpt-oss' if name == 'gptoss' else 'llama3'
  )
  dialogue = talk('Hi there', 'Hello friend', 'Again?', 'Sure thing')
  ours = dataclasses.replace(tokenizer, chat_template=original)
  marks = dataclasses.replace(tokenizer, chat_template=training)
  try:
    ids, learned = encode_dialogue(ours, dialogue)
  except ValueError as error:
    assert "turns='each'" in str(error)
    dialogue = dialogue.up_to(dialogue.learned[0])
    ids, learned = encode_dialogue(ours, dialogue)
  messages = list(dialogue.messages)
  if cut_of(marks).parts:
    messages = [
      {**m, 'content': [{'type': 'text', 'text': m['content']}]}
      for m in messages
    ]
  found = theirs(marks).apply_chat_template(
    messages, return_assistant_tokens_mask=True
  )
  if not cut_of(ours).end:  # the header of a user's turn ends it for TRL
    ids, learned = ids[:-1], learned[:-1]
  assert found['input_ids'][: len(ids)] == ids
  mask = found['assistant_masks'][: len(ids)]
  assert all(m for m, x in zip(mask, learned, strict=True) if x)
  more = tokenizer.core.decode(
    [i for i, m, x in zip(ids, mask, learned, strict=True) if m and not x],
    skip_special_tokens=False,
  )
  for header in (
    '<|start|>assistant',
    '<\uff5cAssistant\uff5c>',
    '<think>',
    '</think>',
  ):
    more = more.replace(header, '')
  assert not more.strip()
