"""Where conversations are cut: the templates of published models."""

import dataclasses

import pytest

from lora_opt.data import encoding, tasks
from lora_opt.data.turns import cut_of
from tests.data import templates

NAMES = list(templates.TEMPLATES)
ANSWERS = (
  'yes',
  '5',
  ' padded ',
  'two\n\nlines',
  'ünïcödé 🙂',
  '<b>',
  'y' * 99,
)


def shown(tokenizer, ids):
  return tokenizer.core.decode(ids, skip_special_tokens=False)


def turns(tokenizer, system, *texts):
  cut = cut_of(tokenizer, system)
  roles = ['user', 'assistant'] * len(texts)
  told = [] if system is None else [cut.message('system', system)]
  return told + [
    cut.message(role, text) for role, text in zip(roles, texts, strict=False)
  ]


@pytest.mark.parametrize('name', NAMES)
def test_what_is_read_and_what_is_said(name):
  tokenizer, published = templates.tokenizer_of(name), templates.TEMPLATES[name]
  prompt, (completion,) = encoding.encode_completions(
    tokenizer, 'Hi', ['yes'], chat=True
  )
  assert shown(tokenizer, prompt) == published.prompt
  assert shown(tokenizer, completion) == published.completion
  assert encoding.encode_prompt(tokenizer, 'Hi', chat=True) == prompt


@pytest.mark.parametrize('system', [None, '', 'Be brief'])
@pytest.mark.parametrize('name', NAMES)
def test_both_are_the_rendered_conversation_token_by_token(name, system):
  tokenizer = templates.tokenizer_of(name)
  if system is not None and not templates.TEMPLATES[name].system:
    with pytest.raises(ValueError, match='the chat template refuses'):
      encoding.encode_prompt(tokenizer, 'Hi', chat=True, system=system)
    return
  prompt, completions = encoding.encode_completions(
    tokenizer, 'Hi there', ANSWERS, chat=True, system=system
  )
  for answer, completion in zip(ANSWERS, completions, strict=True):
    whole = tokenizer.apply_chat(
      turns(tokenizer, system, 'Hi there', answer), False
    )
    ids = tokenizer.encode(whole)
    if name == 'without an end':
      assert completion.pop() == tokenizer.eos_id
    both = prompt + completion
    assert ids[: len(both)] == both
    assert answer.strip() in shown(tokenizer, completion)
    rest = shown(tokenizer, ids[len(both) :])
    assert rest.strip() in ('', '<|endoftext|>')


@pytest.mark.parametrize('name', NAMES)
def test_a_right_answer_is_read_off_what_generation_writes(name):
  tokenizer = templates.tokenizer_of(name)
  rows = [{'question': 'Hi', 'answer': 'yes'}]
  task = tasks.Generation(name='a', train=rows, eval=rows)
  (example,) = task.examples('eval')
  _, completion = task.encode(example, tokenizer)
  stops = task.stops(tokenizer)
  # What follows an end must not matter, nor how its last token is written.
  behind = [*completion, *tokenizer.encode('\nuser: and then?')]
  assert task.score(example, stops.text(behind)) == 1
  ends = [s for s in stops.sequences if list(s) == completion[-len(s) :]]
  assert completion[-1] in stops.ids or ends


def test_thoughts_of_the_row_take_the_place_of_empty_ones():
  tokenizer = templates.tokenizer_of('qwen3')
  answer = '<think>\nWell.\n</think>\n\nyes'
  prompt, (completion,) = encoding.encode_completions(
    tokenizer, 'Hi', [answer], chat=True
  )
  assert shown(tokenizer, prompt) == templates.READ
  assert shown(tokenizer, completion) == answer + '<|im_end|>'


def test_thoughts_that_a_template_leaves_out_are_not_lost_silently():
  with pytest.raises(ValueError, match='it turns the answer .* into'):
    encoding.encode_completions(
      templates.tokenizer_of('deepseek r1'),
      'Hi',
      ['<think>Well.</think>yes'],
      chat=True,
    )


@pytest.mark.parametrize(
  ('template', 'reason'),
  [
    ('{{ messages[0].content }}', 'does not write the texts'),
    ('{% for m in messages %}{{ m.content | upper }}{% endfor %}', 'does not'),
    ('{% for m in messages %}{{ m.content * 2 }}{% endfor %}', 'does not'),
    ('{{ messages | length }}{{ messages | map(attribute="content") | join }}',
     'does not begin with its rendered prompt'),
    ('{% for m in messages %}{{ m.content }}{% endfor %}'
     '{% if messages[-1].role == "assistant" %}'
     '{{ messages[-1].content | length }}{% endif %}',
     'something else around it'),
  ],
)  # fmt: skip
def test_a_template_that_cannot_be_cut_is_refused_by_name(template, reason):
  tokenizer = dataclasses.replace(
    templates.tokenizer_of('chatml'),
    chat_template=template,
    template_place='model/chat_template.jinja',
  )
  with pytest.raises(ValueError, match=reason) as caught:
    encoding.encode_completions(tokenizer, 'Hi', ['no', 'yes'], chat=True)
  assert str(caught.value).startswith('model/chat_template.jinja: ')
  assert 'Set chat=False' in str(caught.value)


def test_a_token_across_the_boundary_stays_whole(toy):
  # ': b' is one token of the conversation, and begins before the answer.
  toy.apply_chats = lambda conversations, marked=False: [
    ''.join(f'{m["role"]}: {m["content"]}<end>' for m in messages)
    + 'assistant: ' * opened
    for messages, opened in conversations
  ]
  prompt, (completion, other) = encoding.encode_completions(
    toy, 'Hi', ['be', 'no'], chat=True
  )
  assert prompt + completion == toy.encode('user: Hi<end>assistant: be<end>')
  assert prompt + other == toy.encode('user: Hi<end>assistant: no<end>')
  assert toy.show(prompt) == 'user: Hi<end>assistant'


@pytest.mark.parametrize('name', NAMES)
def test_the_frame_is_what_stands_around_the_question(name):
  tokenizer = templates.tokenizer_of(name)
  opening, closing = encoding.frame(tokenizer, chat=True)
  for question in ('Hi', 'a much longer question'):
    ids = encoding.encode_prompt(tokenizer, question, chat=True)
    inside = ids[opening : len(ids) - closing]
    assert shown(tokenizer, inside) == question
