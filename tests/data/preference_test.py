"""Preferences: four forms of rows, and how pairs stand in rows of tokens."""

import numpy as np
import pytest

from lora_opt.data import batching, forms, tasks
from lora_opt.data.preference_batching import EncodedPreference
from tests.data import templates
from tests.data.conversation_test import marked

TEXTS = {'prompt': 'Two and two?', 'chosen': 'Four', 'rejected': 'Five'}
ASKED = {'role': 'user', 'content': 'Two and two?'}
FOUR, FIVE = ({'role': 'assistant', 'content': t} for t in ('Four', 'Five'))
WHOLE = {'prompt': 'x', 'chosen': [ASKED, FOUR], 'rejected': [ASKED, FIVE]}
APART = {'prompt': [ASKED], 'chosen': [FOUR], 'rejected': [FIVE]}
HALF = {'prompt': 'Two and two?', 'chosen': [FOUR], 'rejected': [FIVE]}
HH = {
  name: f'\n\nHuman: Two and two?\n\nAssistant: {said}'
  for name, said in (('chosen', 'Four'), ('rejected', 'Five'))
}


def task_of(*rows, **settings):
  return tasks.Preference(name='p', train=rows, eval=rows, **settings)


@pytest.mark.parametrize('row', [TEXTS, WHOLE, APART, HALF, HH])
def test_all_forms_are_the_same(row):
  task = task_of(row, transcripts=row is HH)
  task.validate()
  (example,) = task.examples('train')
  assert example.prompt == 'Two and two?'
  assert example.choices == ('Four', 'Five')
  assert [d.messages for d in example.dialogues] == [
    (ASKED, FOUR),
    (ASKED, FIVE),
  ]
  tokenizer = templates.tokenizer_of('chatml')
  encoded = EncodedPreference.of(task, example, tokenizer)
  found = [marked(tokenizer, s.ids, s.learned) for s in encoded.segments()]
  header = '<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n'
  assert found == [f'{header}[{t}<|im_end|>]' for t in ('Four', 'Five')]
  assert task.encode_prompt(example, tokenizer) == list(encoded.prompt)


@pytest.mark.parametrize('name', list(templates.TEMPLATES))
def test_every_template(name):
  tokenizer = templates.tokenizer_of(name)
  task = task_of(TEXTS)
  (example,) = task.examples('train')
  _, answers, scored = task.encode_scored(example, tokenizer)
  shown = [
    tokenizer.core.decode(ids, skip_special_tokens=False) for ids in answers
  ]
  end = templates.TEMPLATES[name].completion.partition('yes')[2]
  for text, said in zip(shown, ('Four', 'Five'), strict=True):
    assert said + end in text
  assert all(map(all, scored))


def test_later_turns_are_compared_from_the_first_that_differs():
  bye = {'role': 'user', 'content': 'Bye'}
  row = {
    'chosen': [ASKED, FOUR, bye, FOUR],
    'rejected': [ASKED, FOUR, bye, FIVE, bye, FIVE],
  }
  (example,) = task_of(row, system='Be kind').examples('train')
  assert [d.learned for d in example.dialogues] == [[4], [4, 6]]
  assert example.prompt.startswith('system: Be kind\nuser: Two and two?')


def test_plain_texts():
  tokenizer = templates.tokenizer_of('chatml')
  task = task_of(TEXTS, chat=False, prompt='Q: {prompt}\nA:')
  (example,) = task.examples('train')
  prompt, answers, _ = task.encode_scored(example, tokenizer)
  decode = tokenizer.core.decode
  assert decode(prompt) == 'Q: Two and two?\nA:'
  assert decode(answers[0], skip_special_tokens=False) == ' Four<|im_end|>'


def test_two_pairs_in_a_row():
  tokenizer = templates.tokenizer_of('chatml')
  task = task_of(TEXTS, {'prompt': 'Hi', 'chosen': 'yes', 'rejected': 'no'})
  (batch, *_) = batching.eval_batches(
    task, tokenizer, length=256, batch_size=1, kind=EncodedPreference
  )
  segments, weights = batch['segment_ids'][0], batch['weights'][0]
  for segment, said in enumerate(('Four', 'Five', 'yes', 'no'), 1):
    place = (segments == segment) & (weights == 1)
    ids = list(batch['targets'][0][place])
    found = tokenizer.core.decode(ids, skip_special_tokens=False)
    assert found == said + '<|im_end|>'
    assert batch['positions'][0][segments == segment][0] == 0
  assert batch['counts'].tolist() == [[1, 1] + [0] * 14]


def test_what_is_too_long():
  tokenizer = templates.tokenizer_of('chatml')
  bye = {'role': 'user', 'content': 'Bye'}
  long = {
    'chosen': [ASKED, FOUR, bye, FOUR],
    'rejected': [ASKED, FOUR, bye, FIVE],
  }
  task = task_of(long)
  (example,) = task.examples('train')
  size = EncodedPreference.of(task, example, tokenizer).sizes[0]
  split = batching.encode_split(
    task, tokenizer, 'train', length=size - 1, too_long='truncate',
    kind=EncodedPreference,
  )  # fmt: skip
  (kept,) = split.examples
  found = [marked(tokenizer, s.ids, s.learned) for s in kept.segments()]
  assert found[1] == (
    '<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[Five<|im_end|>]'
  )
  assert split.turns_left_out == 2
  plain = task_of({**TEXTS, 'prompt': 'x' * 99}, chat=False)
  (whole,) = plain.examples('train')
  cut = EncodedPreference.of(plain, whole, tokenizer).truncated(60)
  assert cut.sizes[0] <= 60 and np.all(cut.prompt == ord('x'))
  with pytest.raises(ValueError, match='two answers alone are too long'):
    cut.truncated(6)


@pytest.mark.parametrize(
  ('row', 'problem'),
  [
    ({}, "no field 'chosen'"),
    ({**TEXTS, 'rejected': 'Four'}, 'are the same'),
    ({**TEXTS, 'chosen': ' '}, "field 'chosen' is empty"),
    ({**TEXTS, 'chosen': None}, "field 'chosen' must be text"),
    ({**TEXTS, 'chosen': [FOUR]}, "field 'rejected' must be a list"),
    ({'chosen': [ASKED, FOUR], 'rejected': [ASKED, FOUR]}, 'must begin with'),
    ({'chosen': [ASKED, FOUR], 'rejected': [ASKED]}, "'rejected' does not"),
    ({'chosen': [ASKED, FOUR],
      'rejected': [{**ASKED, 'content': 'Why?'}, FIVE]}, 'must begin with'),
    ({'chosen': [FOUR], 'rejected': [FIVE]}, "no field 'prompt'"),
  ],
)  # fmt: skip
def test_bad_rows(row, problem):
  with pytest.raises(ValueError, match=f'train row 0: .*{problem}'):
    task_of(row).validate(['train'])


@pytest.mark.parametrize(
  ('text', 'problem'),
  [
    ('Hello', 'must be turns of'),
    ('Hello\n\nHuman: Hi', 'must be turns of'),
    ('\n\nHuman: Hi\n\nAssistant:', 'has an empty answer'),
  ],
)
def test_bad_transcripts(text, problem):
  task = task_of({**HH, 'rejected': text}, transcripts=True)
  with pytest.raises(ValueError, match=problem):
    task.validate()


def test_what_preferences_are_not_for():
  task = task_of(TEXTS)
  tokenizer = templates.tokenizer_of('chatml')
  settings = {'length': 64, 'batch_size': 1, 'seed': 0}
  for form in ('encoder', 'encoder_decoder'):
    with pytest.raises(ValueError, match='does not go with this kind of model'):
      task.train_batches(tokenizer, form=form, **settings)
  rows = [{'question': 'a', 'answer': 'b'}]
  other = tasks.Generation(name='g', train=rows, eval=rows)
  both = tasks.Mixture(name='both', tasks=(task, other))
  with pytest.raises(ValueError, match='are not trained together'):
    both.train_batches(tokenizer, **settings)
  batch = forms.empty_batch(forms.PAIRS, length=64, batch_size=2)
  assert batch['counts'].shape == (2, 4) and not batch['counts'].any()
