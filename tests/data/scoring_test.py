"""Answers to reasoning_gym: scored as it scores them, and never executed."""

import contextlib
import importlib.metadata
import io
import math
import random
import time
import warnings

import pytest

from lora_opt.data import scoring
from lora_opt.data.scoring import table
from lora_opt.data.sources import ReasoningGym
from lora_opt.data.tasks import Completion, Generation
from tests import payloads

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  from reasoning_gym.factory import DATASETS, create_dataset

# To generate, or in SymPy.
TAKE_LONG = ('intermediate_integration', 'knight_swap')
SCORED = sorted({*table.AS_IT_IS, *table.PREPARED, *table.OURS})


def generated(name, size, seed=3):
  with (
    warnings.catch_warnings(),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    warnings.simplefilter('ignore')
    dataset = create_dataset(name, size=size, seed=seed)
    return dataset, [dataset[index] for index in range(size)]


def theirs(dataset, answer, row):
  with contextlib.redirect_stdout(io.StringIO()):
    try:
      return float(dataset.score_answer(answer, row))
    except Exception:
      return 0.0


def right_answer(row):
  metadata = row['metadata']
  for answer in (
    row['answer'],
    metadata.get('example_correct_answer'),
    metadata.get('possible_answer'),
  ):
    if isinstance(answer, str):
      return answer
  return str(metadata.get('optimal_solution', '0'))


def nearly(text, rng):
  """The text with one to three characters gone, changed or added."""
  characters = list(text)
  usual = [c for c in text if not c.isalpha() and c not in '*()']
  usual += '0123456789 ,.x'
  for _ in range(rng.choice((1, 1, 2, 3))):
    place = rng.randrange(len(characters) + 1)
    if rng.random() < 0.5:
      characters[place : place + 1] = [rng.choice(usual)]
    else:
      del characters[place : place + 1]
  return ''.join(characters)


def honest_answers(row, other, rng):
  """Right, in other forms, nearly right, and wrong."""
  right = right_answer(row)
  lines = [line.split() for line in right.split('\n')]
  yield from (right, f' {right} ', right + '\n', right + '.', f'({right})')
  yield from (f'The answer is {right}', right.upper(), right.lower())
  yield from (right.replace(' ', ''), right.replace('*', ' * '))
  yield from (str(list(right)), str(lines), str(right.split()))
  yield from (f'[{right.replace(" ", ", ")}]', right.replace(' ', ', '))
  yield from ('', '0', '[]', 'I do not know', right_answer(other))
  for _ in range(8):
    yield nearly(right, rng)


def test_every_data_set_has_one_rule():
  names = [*SCORED, *table.NOT_SCORED, *table.NOT_OFFERED]
  assert sorted(names) == sorted(DATASETS)


def test_the_version_that_was_examined_is_the_one_that_is_asked_for():
  assert importlib.metadata.version('reasoning-gym') == table.VERSION


@pytest.mark.slow
@pytest.mark.parametrize('name', SCORED)
def test_honest_answers_score_as_by_reasoning_gym(name):
  compare_with_reasoning_gym(name, 3 if name in TAKE_LONG else 6)


@pytest.mark.long
@pytest.mark.parametrize('name', SCORED)
def test_many_honest_answers_score_as_by_reasoning_gym(name):
  compare_with_reasoning_gym(name, 8 if name in TAKE_LONG else 40, seed=4)


def compare_with_reasoning_gym(name, size, seed=3):
  dataset, rows = generated(name, size, seed)
  rng = random.Random(name)
  for place, row in enumerate(rows):
    for answer in honest_answers(row, rows[place - 1], rng):
      if 'Integral(' in answer:
        continue  # an integral that is left standing is not an antiderivative
      wanted = theirs(dataset, answer, row)
      found = scoring.score(name, answer, row, dataset.score_answer)
      assert found == pytest.approx(wanted, abs=1e-12), (answer, row)


@pytest.mark.slow
@pytest.mark.parametrize('name', SCORED)
def test_nothing_that_a_model_writes_is_executed(name, tmp_path):
  source = ReasoningGym(name, size=1, seed=2)
  with contextlib.redirect_stdout(io.StringIO()):
    row = source[0]
    source.score('warm', row)
  before = repr(row)
  for text, score in payloads.judged(
    lambda text: source.score(text, row), tmp_path / 'marker'
  ):
    assert math.isfinite(score) and 0 <= score <= 1, text[:60]
  assert repr(row) == before


# What answers are made of, and what bombs are.
PIECES = (
  *'019xCP()[]{},.:=+-*/!"\'\\#%&~^|<> \n\t\0\xac\xd7\u2192\u0663\ud800',
  *(
    '**',
    '99999',
    '1e999',
    'e9',
    '_',
    '\uff19',
    '0x',
    'nan',
    'inf',
    'None',
    'True',
    'lambda',
  ),
  *('sin(', 'exp(', 'sqrt(', 'log(', 'move(', '"a":', "'a',", '[[', ']]'),
  *('\N{LOGICAL OR}', '\N{LOGICAL AND}', 'F9', "R'", 'A+9', 'exit()'),
  *('Move disk 1 from Peg 1 to Peg 2\n', 'fill A', 'pour A->B', ' days, '),
  *('\U0001f600', 'Q _ ', 'up '),
)


def hostile(right, rng):
  """Pieces, repeated, alone or around the right answer."""
  some = [rng.choice(PIECES) for _ in range(rng.randrange(1, 7))]
  text = ''.join(some) * rng.choice((1, 2, 30, 1000, 4000))
  return rng.choice((text, right + text, text + right, f'[{text}]'))


def attack(name, count):
  source = ReasoningGym(name, size=2, seed=5)
  with contextlib.redirect_stdout(io.StringIO()):
    rows = list(source)
    source.score('warm', rows[0])
  rng = random.Random(name)
  for index in range(count):
    row = rows[index % 2]
    text = hostile(right_answer(row), rng)
    start = time.process_time()
    score = source.score(text, row)
    assert time.process_time() - start < 1, text[:200]
    assert 0 <= score <= 1, text[:200]


@pytest.mark.parametrize('name', SCORED)
def test_any_text_is_scored_quickly(name):
  attack(name, 30)


@pytest.mark.long
@pytest.mark.parametrize('name', SCORED)
def test_many_texts_are_scored_quickly(name):
  attack(name, 500)


@pytest.mark.parametrize(
  ('name', 'answer'),
  [
    ('number_sorting', '[NaN, NaN, NaN]'),
    ('complex_arithmetic', 'nan'),
    ('complex_arithmetic', 'n a n'),
  ],
)
def test_nan_is_no_answer(name, answer):
  dataset, rows = generated(name, 8)
  for row in rows:
    count = len(row['answer'].split(','))
    answer = answer if name != 'number_sorting' else str(['NaN'] * count)
    for text in (answer, answer.replace("'", '')):
      assert scoring.score(name, text, row, dataset.score_answer) == 0


def test_an_answer_far_too_long_scores_0_unread():
  def fails(answer, row):
    raise AssertionError('it was read')

  row = {'answer': '7', 'metadata': {}}
  text = '7' + ' ' * scoring.LONGEST
  assert scoring.score('chain_sum', text, row, fails) == 0
  long = {'answer': text, 'metadata': {}}
  assert scoring.score('acre', text, long, lambda *_: 1.0) == 1


@pytest.mark.parametrize(
  ('name', 'why'),
  [
    ('codeio', 'executes code that a language model wrote'),
    ('composite', 'make a task of each'),
  ],
)
def test_some_data_sets_are_not_offered(name, why):
  with pytest.raises(ValueError, match=why):
    ReasoningGym(name, size=2, seed=0)


def generation(source, **settings):
  return Generation(
    name='made', train=source, eval=source, chat=False, **settings
  )


def test_what_cannot_be_scored_is_refused_when_the_task_is_made():
  source = ReasoningGym('game_of_life_halting', size=2, seed=0)
  with pytest.raises(ValueError, match=r'game_of_life_halting.*Completion'):
    generation(source)
  with pytest.raises(ValueError, match='game_of_life_halting'):
    source.score('True', source[0])
  own = generation(source, scorer=lambda text, row: float(text == 'True'))
  assert own.score(own.examples('eval')[0], 'True') == 1
  Completion(name='made', train=source, eval=source).examples('eval')


def test_what_no_one_examined_is_refused():
  with pytest.raises(ValueError, match=r"'new_one'.*was not examined"):
    generation(ReasoningGym('new_one', size=2, seed=0))


def test_scorers_of_another_version_are_refused(monkeypatch):
  monkeypatch.setattr(scoring, '_installed', lambda: '0.2.0')
  with pytest.raises(ValueError, match=r'pip install reasoning-gym==0\.1\.25'):
    generation(ReasoningGym('chain_sum', size=2, seed=0))
  generation(ReasoningGym('n_queens', size=2, seed=0))  # ours


@pytest.mark.parametrize(
  ('answer', 'score'),
  [
    ('x**3/3 + C', 1),
    ('x**3/3', 1),
    ('(x**3 - 7)/3 + k', 1),
    ('0.3333333333333333*x**3', 1),
    ('0.333*x**3', 0),
    ('x**3/3 + C*x', 0),
    ('x**3', 0),
    ('x^3/3', 0),
    ('exp(3*log(x))/3', 1),
    ('x**3/3 + atan(x) + atan(1/x)', 1),
    ('1/0 + x**3/3', 0),
    ('', 0),
    ('x**3/3)', 0),
    ('getattr(x)', 0),
  ],
)
def test_an_antiderivative_in_any_form_is_right(answer, score):
  row = {'metadata': {'variable': 'x', 'integrand': 'x**2'}}
  name = 'simple_integration'
  assert scoring.score(name, answer, row, None) == score


@pytest.mark.parametrize(
  ('answer', 'score'),
  [
    ('x**2 + 3*x + 2', 1),
    ('2 + 3*x + x*x', 1),
    ('x*(x) + 3*(x + 1) - 1', 1),
    ('(x + 1)*(x + 2)', 0),
    ('x*(x + 3) + 2', 0),
    ('(x + 1)**2 + x + 1', 0),
    ('x**2 + 3*x', 0),
    ('x**2 + 3*x + 2.0', 0),
  ],
)
def test_a_polynomial_must_be_multiplied_out(answer, score):
  row = {'answer': 'x**2 + 3*x + 2'}
  name = 'polynomial_multiplication'
  assert scoring.score(name, answer, row, None) == score
