"""Conversations of several turns: which tokens are learned, template by one."""

import dataclasses

import numpy as np
import pytest

from lora_opt.data import batching, encoding, tasks
from lora_opt.data.conversation import encode_asked, encode_dialogue
from lora_opt.data.dialogue import Dialogue
from lora_opt.data.packing import EncodedExample
from lora_opt.data.tokenizer import Tokenizer
from tests.data import templates

NAMES = list(templates.TEMPLATES)
# They write a turn otherwise once others follow, or do not end one.
APART = {
  'qwen3': 'up to it',
  'gpt-oss': 'up to it',
  'without an end': 'does not end a turn',
}
TOOLS = (
  "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}"
  "{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
  '{% for m in messages %}{{ "<|im_start|>" + m.role + "\\n" + m.content }}'
  '{% for c in m.tool_calls or [] %}{{ "<call>" }}{{ c.function | tojson }}'
  '{% endfor %}{{ "<|im_end|>\\n" }}{% endfor %}'
  '{% if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}'
)
TOOL = {
  'type': 'function',
  'function': {'name': 'weather', 'parameters': {'type': 'object'}},
}


def talk(*texts, system=None, learned=None):
  messages = [] if system is None else [{'role': 'system', 'content': system}]
  for number, text in enumerate(texts):
    role = ('user', 'assistant')[number % 2]
    messages.append({'role': role, 'content': text})
  trained = [m['role'] == 'assistant' for m in messages]
  return Dialogue(tuple(messages), tuple(learned or trained))


def marked(tokenizer, ids, learned):
  """The text, with what is learned in brackets."""
  edges = np.flatnonzero(np.diff([False, *learned, False]))
  pieces = np.split(np.array(ids), edges)
  texts = [
    tokenizer.core.decode(list(piece), skip_special_tokens=False)
    for piece in pieces
  ]
  return ''.join(f'[{t}]' if i % 2 else t for i, t in enumerate(texts))


THREE = talk('Hi', 'yes', 'And é?', ' two\n\nlines', 'So', 'y' * 30)


@pytest.mark.parametrize('name', NAMES)
def test_every_answer_is_learned_as_if_it_were_the_last(name):
  tokenizer = templates.tokenizer_of(name)
  alone = [
    encode_dialogue(tokenizer, THREE.up_to(place)) for place in THREE.learned
  ]
  # The first is what the older code for a single turn makes of it.
  prompt, (completion,) = encoding.encode_completions(
    tokenizer, 'Hi', ['yes'], chat=True
  )
  assert alone[0][0] == prompt + completion
  assert alone[0][1] == [False] * len(prompt) + [True] * len(completion)
  for _, learned in alone:
    assert sum(np.diff(np.int8([*learned, 0])) == 1) == 1  # one stretch, last
    assert learned[-1]
  if name in APART:
    with pytest.raises(ValueError, match=f"{APART[name]}.*turns='each'"):
      encode_dialogue(tokenizer, THREE)
    return
  ids, learned = encode_dialogue(tokenizer, THREE)
  for part, said in alone:
    assert ids[: len(part)] == part
    assert np.all(learned[: len(part)] >= np.array(said))
  assert sum(learned) == sum(sum(said) for _, said in alone)


@pytest.mark.parametrize('name', NAMES)
def test_an_answer_is_asked_for_with_what_it_is_learned_behind(name):
  tokenizer = templates.tokenizer_of(name)
  last = THREE.up_to(THREE.learned[-1])
  ids, learned = encode_dialogue(tokenizer, last)
  assert encode_asked(tokenizer, last) == ids[: learned.index(True)]


def test_brackets():
  tokenizer = templates.tokenizer_of('chatml')
  found = marked(
    tokenizer, *encode_dialogue(tokenizer, talk('a', 'b', 'c', 'd'))
  )
  assert found == (
    '<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n'
    '<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]'
  )


def test_an_answer_of_no_weight_is_read_only():
  tokenizer = templates.tokenizer_of('chatml')
  dialogue = talk('a', 'b', 'c', 'd', learned=(False, False, False, True))
  found = marked(tokenizer, *encode_dialogue(tokenizer, dialogue))
  assert 'b<|im_end|>' in found and '[b' not in found
  assert found.endswith('[d<|im_end|>]')


def test_thoughts_that_history_leaves_out_are_learned_where_they_stand():
  """Qwen 3: each turn with its own thoughts, those before it without."""
  tokenizer = templates.tokenizer_of('qwen3')
  said = [f'<think>\n{w}\n</think>\n\n{w}!' for w in ('one', 'two')]
  dialogue = talk('a', said[0], 'b', said[1])
  first, second = (
    marked(tokenizer, *encode_dialogue(tokenizer, dialogue.up_to(place)))
    for place in (1, 3)
  )
  assert first.endswith(f'assistant\n[{said[0]}<|im_end|>]')
  assert 'assistant\none!<|im_end|>' in second
  assert second.endswith(f'assistant\n[{said[1]}<|im_end|>]')


def of(template):
  return dataclasses.replace(
    templates.tokenizer_of('chatml'),
    chat_template=template,
    template_place='model/chat_template.jinja',
  )


def test_tools_and_calls():
  tokenizer = of(TOOLS)
  call = {'function': {'name': 'weather', 'arguments': {'city': 'Ulm'}}}
  messages = (
    {'role': 'user', 'content': 'Rain?'},
    {'role': 'assistant', 'content': '', 'tool_calls': [call]},
    {'role': 'tool', 'content': '{"rain": 1}'},
    {'role': 'assistant', 'content': 'Yes.'},
  )
  dialogue = Dialogue(messages, (False, True, False, True), (TOOL,))
  found = marked(tokenizer, *encode_dialogue(tokenizer, dialogue))
  assert '"name": "weather", "parameters"' in found.partition('[<call>')[0]
  assert (
    'assistant\n[<call>{"name": "weather", "arguments": {"city": "Ulm"}}'
    '<|im_end|>]\n<|im_start|>tool\n{"rain": 1}<|im_end|>\n'
    '<|im_start|>assistant\n[Yes.<|im_end|>]'
  ) in found
  plain = templates.tokenizer_of('chatml')
  with pytest.raises(ValueError, match="does not write the tool 'weather'"):
    encode_dialogue(plain, dialogue)
  with pytest.raises(ValueError, match="it turns 'weather' of an answer"):
    encode_dialogue(plain, dialogue._replace(tools=None))


@pytest.mark.parametrize(
  ('template', 'reason'),
  [
    # The number of turns stands in front.
    ('{{ messages | length }}{% for m in messages %}<{{ m.role }}>'
     '{{ m.content }}<|im_end|>{% endfor %}', 'otherwise in the whole|begin'),
    # Only the last two messages are written.
    ('{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}<|im_end|>'
     '{% endfor %}', 'leaves out message 0'),
    # Long answers are cut.
    ('{% for m in messages %}<{{ m.role }}>{{ m.content[:20] }}<|im_end|>'
     '{% endfor %}', "it turns 'yyyy.* of an answer"),
    # The system's turn is left out.
    ('{% for m in messages if m.role != "system" %}<{{ m.role }}>'
     '{{ m.content }}<|im_end|>{% endfor %}', 'leaves out message 0'),
  ],
)  # fmt: skip
def test_what_would_be_learned_wrongly_is_refused_by_name(template, reason):
  messages = ({'role': 'system', 'content': 'Be brief'}, *THREE.messages)
  dialogue = THREE._replace(
    messages=messages, trained=(False, *THREE.trained), place='a.jsonl:7'
  )
  task = tasks.Conversation(name='t', train=[{}], eval=[{}])
  example = dataclasses.replace(encoded_example(THREE), dialogues=(dialogue,))
  with pytest.raises(ValueError, match=reason) as caught:
    task.encode_scored(example, of(template))
  assert str(caught.value).startswith('a.jsonl:7: model/chat_template.jinja')


def encoded_example(dialogue):
  rows = [{'messages': list(dialogue.messages)}]
  return tasks.Conversation(name='t', train=rows, eval=rows).examples('train')[
    0
  ]


def merging():
  """A tokenizer with tokens across every boundary of a template in words."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  core = tokenizers.Tokenizer(models.BPE())
  core.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  core.decoder = decoders.ByteLevel()
  texts = [
    'user: Hi\nbot: yes.\nuser: So\nbot: no.\n',
    'bot: well.\nuser: b',
  ] * 9
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=300,
    show_progress=False,
    initial_alphabet=alphabet,
    special_tokens=['<eos>'],
  )
  core.train_from_iterator(texts, trainer)
  template = (
    "{% for m in messages %}{{ ('bot' if m.role == 'assistant' else m.role) + "
    "': ' + m.content + '.\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'bot:' }}{% endif %}"
  )
  return Tokenizer(
    core, None, core.token_to_id('<eos>'), chat_template=template
  )


def test_tokens_that_reach_across_a_boundary_are_learned_whole():
  tokenizer = merging()
  dialogue = talk('Hi', 'yes', 'So', 'no', 'Hi', 'well')
  ids, learned = encode_dialogue(tokenizer, dialogue)
  text = tokenizer.core.decode(ids)
  offsets = tokenizer.offsets(text)
  assert tokenizer.encode(text) == ids
  end = len('.')  # what ends a turn, but for the line's end
  spans = [
    (text.index(f' {word}.'), text.index(f'{word}.') + len(word) + end)
    for word in ('yes', 'no', 'well')
  ]
  across = 0
  for (first, last), is_learned in zip(offsets, learned, strict=True):
    inside = [a < last and first < b for a, b in spans]
    assert is_learned == any(inside)
    across += any(
      a < last and first < b and not a <= first <= last <= b for a, b in spans
    )
  assert across >= 2


def task_of(count=3, **settings):
  rows = [
    {'messages': list(talk('q' * 10, 'a' * 9, 'r' * 8, 'b' * (7 + i)).messages)}
    for i in range(count)
  ]
  return tasks.Conversation(name='talks', train=rows, eval=rows, **settings)


def test_packed_rows_weigh_the_answers_alone():
  tokenizer, task = templates.tokenizer_of('chatml'), task_of()
  (batch,) = batching.eval_batches(task, tokenizer, length=512, batch_size=1)
  learned = batch['targets'][batch['weights'] == 1]
  end = tokenizer.eos_id
  texts = tokenizer.core.decode(list(learned), skip_special_tokens=False)
  for i in range(3):
    assert 'a' * 9 + '<|im_end|>' + 'b' * (7 + i) + '<|im_end|>' in texts
  assert list(learned).count(end) == 6 == texts.count('<|im_end|>')
  assert set(batch['segment_ids'][batch['weights'] == 1]) == {1, 2, 3}
  each = task_of(turns='each')
  assert len(each.examples('train')) == 6
  (parts,) = batching.eval_batches(each, tokenizer, length=1024, batch_size=1)
  assert parts['weights'].sum() == batch['weights'].sum()
  last = task_of(turns='last')
  (alone,) = batching.eval_batches(last, tokenizer, length=512, batch_size=1)
  assert alone['weights'].sum() == 7 + 8 + 9 + 3


def test_the_oldest_turns_are_left_out_first():
  tokenizer = templates.tokenizer_of('chatml')
  dialogue = talk(
    'one', 'un', 'two', 'deux', 'three', 'trois', system='Be kind'
  )
  rows = [
    {'messages': list(dialogue.messages)},
    {'messages': list(talk('x' * 900, 'y').messages)},
  ]
  task = tasks.Conversation(name='t', train=rows, eval=rows)
  first = task.examples('train')[0]
  (whole,) = EncodedExample.of_all(task, [first], tokenizer)
  length = whole.sizes[0] - 1
  split = batching.encode_split(
    task, tokenizer, 'train', length=length, too_long='truncate'
  )
  (kept,) = split.examples
  expected, learned = encode_dialogue(tokenizer, dialogue.shorter())
  assert list(kept.ids) == expected and list(kept.learned) == learned
  text = marked(tokenizer, expected, learned)
  assert 'Be kind' in text and 'un<' not in text and '[deux' in text
  assert str(split) == (
    '2 examples, 2 too long and truncated (their 2 oldest messages are left '
    'out), 1 of them dropped: their last turn is too long'
  )
  split = batching.encode_split(
    task, tokenizer, 'train', length=whole.sizes[0] // 2, too_long='truncate'
  )
  assert split.turns_left_out == 4
