"""Conversations against transformers: its text, its ids, and its mask."""

import pytest
import transformers

from lora_opt.data import encoding
from lora_opt.data.chat_template import ChatTemplate
from tests.data import templates

ANSWERS = ('yes', ' two\n\nlines ', '<é>')


def theirs(tokenizer):
  named = {
    f'{name}_token': tokenizer.core.id_to_token(token_id)
    for name, token_id in (('bos', tokenizer.bos_id), ('eos', tokenizer.eos_id))
    if token_id is not None
  }
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer.core,
    chat_template=tokenizer.chat_template,
    clean_up_tokenization_spaces=False,
    **named,
  )


def conversation(name, answer):
  content = [{'type': 'text', 'text': answer}] if name == 'parts' else answer
  asked = [{'type': 'text', 'text': 'Hi'}] if name == 'parts' else 'Hi'
  return [
    {'role': 'user', 'content': asked},
    {'role': 'assistant', 'content': content},
  ]


@pytest.mark.parametrize('name', list(templates.TEMPLATES))
def test_ids_are_those_of_transformers(name):
  tokenizer = templates.tokenizer_of(name)
  reference = theirs(tokenizer)
  prompt, completions = encoding.encode_completions(
    tokenizer, 'Hi', ANSWERS, chat=True
  )
  for answer, completion in zip(ANSWERS, completions, strict=True):
    messages = conversation(name, answer)
    ids = reference.apply_chat_template(messages)['input_ids']
    if name == 'without an end':
      completion = completion[:-1]
    both = prompt + completion
    assert ids[: len(both)] == both
    rest = reference.decode(ids[len(both) :])
    assert rest.strip() in ('', '<|endoftext|>')
  opened = reference.apply_chat_template(
    conversation(name, '')[:1], add_generation_prompt=True
  )['input_ids']
  if name not in ('deepseek r1', 'without a header'):
    assert opened == prompt


@pytest.mark.parametrize('answer', ANSWERS)
def test_the_loss_is_where_the_template_marks_it(answer):
  tokenizer = templates.tokenizer_of('marked')
  prompt, (completion,) = encoding.encode_completions(
    tokenizer, 'Hi', [answer], chat=True
  )
  found = theirs(tokenizer).apply_chat_template(
    conversation('marked', answer), return_assistant_tokens_mask=True
  )
  ids, mask = found['input_ids'], found['assistant_masks']
  assert [i for i, m in zip(ids, mask, strict=True) if m] == completion
  assert mask.index(1) == len(prompt)


TEXTS = (
  '{{ messages[0].content | tojson }}',
  "{{ {'b': 'é<', 'a': [1]} | tojson(indent=2, sort_keys=true) }}",
  '{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}'
  '{% if i == 3 %}{% break %}{% endif %}{% endfor %}',
  "{{ strftime_now('%Y') | length }}",
  '{% generation %}{{ messages[0].content }}{% endgeneration %}!',
  '{{ tools is none }}{{ documents is none }}{{ tools is defined }}',
  "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ dict(b=3) }}",
  '{{ eos_token }}{{ bos_token is defined }}{{ pad_token }}|{{ nothing }}',
  "{{ messages[0]['content'].split('<')[-1].strip() | title }}",
  '  {%- if true %}\n  kept\n  {% endif %}\n',
)  # fmt: skip


@pytest.mark.parametrize('template', TEXTS)
def test_texts_are_those_of_transformers(template):
  tokenizer = templates.tokenizer_of('chatml')
  messages = [{'role': 'user', 'content': 'é < "quoted" word'}]
  expected = theirs(tokenizer).apply_chat_template(
    messages, chat_template=template, tokenize=False
  )
  variables = {'eos_token': '<|im_end|>'}
  found = ChatTemplate(template).render([(messages, False)], variables)
  assert found == [expected]
