"""Tasks: what a row becomes, what is refused, how answers score."""

import dataclasses

import pytest

from lora_opt.data import sources, tasks
from lora_opt.data.examples import Example
from lora_opt.data.overlap import overlap

QUESTIONS = [
  {'question': 'Sky?', 'choices': ['blue', 'red'], 'answer': 0},
  {'question': 'Grass?', 'choices': ['red', 'green', 'pink'], 'answer': 1},
]
REVIEWS = [{'text': 'fine', 'label': 1}, {'text': 'dull', 'label': 0}]
SUMS = [{'question': '2 + 2?', 'answer': 'Add.\n#### 4', 'final': '4'}]


def choice(train=QUESTIONS, eval=QUESTIONS, **kwargs):
  return tasks.MultipleChoice(name='sky', train=train, eval=eval, **kwargs)


def reviews(rows=REVIEWS, **kwargs):
  names = kwargs.pop('label_names', ('bad', 'good'))
  return tasks.Classification(
    name='reviews',
    train=rows,
    eval=rows,
    prompt='{text} :',
    label_names=names,
    **kwargs,
  )


def sums(rows=SUMS, **kwargs):
  kwargs.setdefault('extract', tasks.after_hashes)
  return tasks.Generation(name='sums', train=rows, eval=rows, **kwargs)


def test_multiple_choice_examples():
  task = choice()
  example = task.examples('eval')[1]
  assert example.prompt == 'Question: Grass?\nAnswer:'
  assert example.choices == ('red', 'green', 'pink')
  assert (example.answer, example.completion) == (1, 'green')
  assert example.row == QUESTIONS[1]
  assert (task.kind, task.metric) == ('choice', 'accuracy')
  assert len(task.examples('train')) == 2
  assert task.score(example, ' green ') == 1
  assert task.score(example, 'red') == 0


def test_fields_may_go_by_other_names():
  rows = [{'stem': 'Sky?', 'hint': 'up', 'options': ['a', 'b'], 'key': 1}]
  task = choice(
    rows,
    rows,
    question='stem',
    choices='options',
    answer='key',
    prompt='{hint}: {question}',
  )
  assert task.examples('train')[0].prompt == 'up: Sky?'
  assert task.examples('train')[0].completion == 'b'


def test_classification_labels_are_words():
  task = reviews()
  assert task.examples('train')[0].completion == 'good'
  assert task.examples('train')[1].answer == 0
  by_name = reviews([{'text': 'fine', 'label': 'good'}])
  assert by_name.examples('train')[0].answer == 1
  by_truth = reviews([{'text': 'fine', 'label': True}])
  assert by_truth.examples('train')[0].answer == 1
  assert task.kind == 'classification'


def test_generation_scores_the_extracted_answer():
  task = sums()
  example = task.examples('eval')[0]
  assert example.completion == 'Add.\n#### 4'
  assert task.score(example, 'So it is\n#### 4') == 1
  assert task.score(example, '#### 5\nno, #### 4.0') == 1
  assert task.score(example, '4') == 0
  assert task.score(example, '#### 44') == 0
  assert (task.kind, task.metric) == ('generation', 'exact_match')


def test_generation_can_extract_by_expression_or_field():
  task = sums(extract=r'is (\d+)', answer='final')
  example = task.examples('eval')[0]
  assert task.score(example, 'it is 3, no, it is 4') == 1
  assert task.score(example, 'it is') == 0
  whole = sums(extract=None, answer='final')
  assert whole.score(example, ' 4\n') == 1


def test_a_completion_is_its_only_choice():
  task = tasks.Completion(name='sums', train=SUMS, eval=SUMS, chat=False)
  (example,) = task.examples('eval')
  assert example.prompt == SUMS[0]['question']
  assert example.choices == (SUMS[0]['answer'],) == (example.completion,)
  assert example.answer == 0
  empty = dataclasses.replace(task, eval=[SUMS[0] | {'answer': ' '}])
  with pytest.raises(ValueError, match='is empty'):
    empty.validate(['eval'])


def test_generation_uses_a_given_scorer():
  task = sums(scorer=lambda text, row: 0.5 * (row['final'] in text))
  assert task.metric == 'score'
  assert task.score(task.examples('eval')[0], '#### 4') == 0.5


def test_procedural_tasks_use_their_own_scorer():
  task = tasks.Generation(
    name='chain_sum',
    train=sources.ReasoningGym('chain_sum', size=3, seed=0),
    eval=sources.ReasoningGym('chain_sum', size=3, seed=100),
  )
  task.validate()
  example = task.examples('eval')[0]
  assert task.metric == 'score'
  assert task.score(example, example.row['answer']) == 1
  assert task.score(example, 'none') == 0


def test_seeds_that_meet_are_refused():
  task = tasks.Generation(
    name='chain_sum',
    train=sources.ReasoningGym('chain_sum', size=8, seed=0),
    eval=sources.ReasoningGym('chain_sum', size=8, seed=1),
  )
  with pytest.raises(ValueError, match='7 rows from the same seeds'):
    task.validate()


def row(**change):
  return QUESTIONS[0] | change


@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    (
      {'question': 'Why?', 'answer': 0},
      "no field 'choices'; available .*answer",
    ),
    (row(answer=2), "field 'answer' is 2, but there are 2 choices"),
    (row(answer=-1), "field 'answer' is -1"),
    (row(answer='0'), "'answer' must be the index of a choice, found str '0'"),
    (row(answer=True), 'found bool True'),
    (row(answer=0.0), 'found float'),
    (row(choices='blue'), "'choices' must be a list of at least two"),
    (row(choices=['blue']), "'choices' must be a list of at least two"),
    (row(choices=['blue', '']), "'choices' must hold texts, found ''"),
    (row(question=None), "'question' must be text, found NoneType"),
    ('a line', 'expected a dict, found str'),
  ],
)
@pytest.mark.parametrize('split', ['train', 'eval'])
def test_bad_rows_are_found_before_training(bad, message, split):
  task = dataclasses.replace(choice(), **{split: [QUESTIONS[0], bad]})
  with pytest.raises(ValueError, match=f'^{split} row 1: .*{message}'):
    task.validate()


@pytest.mark.parametrize(
  ('label', 'message'),
  [
    (2, r'is 2, but there are 2 labels: 0 to 1 \(bad, good\)'),
    (
      'fair',
      "must be a label, one of bad, good or its index, found str 'fair'",
    ),
    (0.5, 'found float 0.5'),
    (None, 'found NoneType'),
  ],
)
def test_bad_labels_are_named(label, message):
  with pytest.raises(ValueError, match=message):
    reviews([{'text': 'fine', 'label': label}]).validate()


def test_truth_values_need_two_labels():
  task = reviews(
    [{'text': 'fine', 'label': True}], label_names=('bad', 'good', 'fair')
  )
  with pytest.raises(ValueError, match='found bool True'):
    task.validate()


def test_file_errors_name_the_line(tmp_path):
  (tmp_path / 'rows.jsonl').write_text(
    '{"question": "2?", "answer": "2"}\n{}\n'
  )
  source = sources.JsonLines('rows.jsonl', str(tmp_path))
  with pytest.raises(
    ValueError, match=r"rows\.jsonl:2: no field 'answer'; available .*: none"
  ):
    sums(source, extract=None).validate()


def test_a_reference_without_an_answer_is_refused():
  with pytest.raises(ValueError, match=r'train row 0: .*finds no answer in'):
    sums([{'question': '2?', 'answer': 'two'}]).validate()
  with pytest.raises(ValueError, match=r'completion .* is empty'):
    sums([{'question': '2?', 'answer': ' '}]).validate()


def test_empty_and_unknown_splits_are_refused():
  with pytest.raises(ValueError, match='the eval split is empty'):
    choice(eval=[]).validate()
  with pytest.raises(ValueError, match="'sky' has no split 'test'"):
    choice().examples('test')
  with pytest.raises(IndexError, match='no example 2'):
    choice().examples('eval')[2]


@pytest.mark.parametrize(
  ('prompt', 'message'),
  [
    ('{question', 'expected .}.|braces'),
    ('{question.x}', 'not a plain field name'),
    ('{}', 'not a plain field name'),
    ('{question:>9}', 'not a plain field name'),
  ],
)
def test_bad_templates_are_refused_at_once(prompt, message):
  with pytest.raises(ValueError, match=message):
    choice(prompt=prompt)
  with pytest.raises(ValueError, match=message):
    sums(completion=prompt)


def test_braces_in_a_template_are_doubled():
  example = sums(prompt='{{x}} {question}').examples('train')[0]
  assert example.prompt == '{x} 2 + 2?'


def test_bad_settings_are_refused_at_once():
  with pytest.raises(ValueError, match=r"extract='\(' is not a regular"):
    sums(extract='(')
  with pytest.raises(ValueError, match="too_long='cut' must be one of"):
    sums(too_long='cut')
  for names in ('bad', ('bad',), ('bad', 'bad')):
    with pytest.raises(ValueError, match='two or more different words'):
      reviews(label_names=names)


def test_batches_follow_the_settings_of_the_task(toy):
  task = sums(SUMS * 8, packing=False, too_long='error', chat=False)
  train = next(iter(task.train_batches(toy, length=40, batch_size=2, seed=0)))
  assert train['segment_ids'].max() == 1
  loss = list(
    task.eval_batches(toy, length=40, batch_size=2, indices=[3, 4, 5])
  )
  assert [b['segment_ids'][:, 0].tolist() for b in loss] == [[1, 1], [1, 0]]
  with pytest.raises(ValueError, match='eval example 3 needs'):
    task.eval_batches(toy, length=4, batch_size=2, indices=[3])
  (prompts,) = task.prompt_batches(toy, batch_size=3, indices=[1, 2])
  assert prompts.example.tolist() == [1, 2, -1]
  (choices,) = choice(chat=False).choice_batches(toy, batch_size=1)
  assert choices.arrays['branches'].max() == 3


def test_overlap_finds_eval_prompts_in_train():
  train = [row(question='sky  ?'), row(question='Sea?')]
  eval = [row(question='Sun?'), row(question='Sky ?'), row(question='Sea?')]
  assert choice(train, eval).overlap() == [1, 2]
  assert choice(train, eval[:1]).overlap() == []


def test_overlap_is_of_what_an_encoder_reads_where_there_is_no_prompt():
  first, second = (
    Example('', '', texts=texts) for texts in (('a', 'b'), ('a', 'c'))
  )
  assert overlap([first], [second, first]) == [1]


def test_a_form_that_is_not_there_is_refused(toy):
  task = choice(chat=False)
  for batches in (task.choice_batches, task.prompt_batches):
    with pytest.raises(ValueError, match="form='tower' must be one of decoder"):
      batches(toy, batch_size=1, form='tower')
  for batches in (task.eval_batches, task.train_batches):
    seed = {'seed': 0} if batches == task.train_batches else {}
    with pytest.raises(ValueError, match="form='tower' must be one of decoder"):
      batches(toy, length=40, batch_size=1, form='tower', **seed)
