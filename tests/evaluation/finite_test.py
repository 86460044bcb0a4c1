"""What is not finite becomes no score: an error says where it arose."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.data.examples import Example
from lora_opt.data.tasks import Generation, MultipleChoice
from lora_opt.evaluation import classify, likelihood, metrics, run
from lora_opt.evaluation.bootstrap import bootstrap_interval
from lora_opt.evaluation.decoding import Sampling, make_decoder
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.lm_eval_bridge import Bridge
from lora_opt.evaluation.study import ranking
from lora_opt.evaluation.study import rows as study_rows

pytestmark = pytest.mark.usefixtures('fast_compile')

BAD = (np.nan, np.inf, -np.inf)
SAID = r'is (nan|-?inf|not finite), which is not a number to score'
CHOICES = MultipleChoice(
  name='choices',
  train=[{'question': 'q', 'choices': ['a', 'b'], 'answer': 0}],
  eval=[{'question': 'Which?', 'choices': ['red', 'blue'], 'answer': 0}] * 2,
  chat=False,
)
WRITING = Generation(
  name='writing',
  train=[{'question': 'q', 'answer': 'a'}],
  eval=[{'question': f'Say {w}', 'answer': w} for w in ('yes', 'no')],
  chat=False,
)


@pytest.fixture(scope='module')
def spoiled(model):
  """An adapter with one NaN, where every example meets it."""
  lora = model.init(jax.random.key(3))
  leaves, tree = jax.tree.flatten(lora)
  leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.nan)
  return jax.tree.unflatten(tree, leaves)


@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('place', [0, 1])
def test_a_likelihood(bad, place):
  sums = [-1.0, -2.0]
  sums[place] = bad
  example = Example('q', 'a', ('a', 'b'), 0)
  with pytest.raises(
    ValueError, match=rf"sky 3 \('q'\).*choice {place}.*{SAID}"
  ):
    likelihood.predict(example, sums, [1, 1], 'sky 3')


def test_a_choice_without_tokens():
  example = Example('q', 'a', ('a', 'b'), 0)
  with pytest.raises(ValueError, match='it has no tokens'):
    likelihood.predict(example, [-1.0, 0.0], [1, 0])


def test_what_is_padded_may_be_anything():
  batch = type('Batch', (), {})()
  batch.arrays = {'weights': np.array([[1.0, 0.0]])}
  batch.example = batch.choice = np.zeros((1, 2), int)

  def losses(arrays):
    return np.array([[0.5, np.inf]])

  sums, tokens = likelihood.sum_over_choices([batch], losses, (1, 1))
  assert (sums[0, 0], tokens[0, 0]) == (-0.5, 1)


@pytest.mark.parametrize('bad', BAD)
def test_an_output_of_an_encoder(bad):
  for example in (
    Example('q', 'a', ('a', 'b'), 0),
    Example('q', '1', number=1.0),
  ):
    with pytest.raises(ValueError, match=SAID):
      classify.judge(example, np.array([bad, 0.0]))


@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize(
  'sampling', [Sampling(), Sampling(temperature=1.0, top_k=2, top_p=0.5)]
)
def test_a_token_is_never_drawn_from_what_is_not_finite(
  bad, sampling, placement
):
  class Model:
    def start_decoding(self, base, lora, tokens, valid, new):
      return jnp.array([[bad] * 3, [0.0, 1.0, -jnp.inf]]), jnp.zeros(2)

    def decode_step(self, base, lora, cache, tokens):
      return jnp.array([[0.0, 9.0, 0.0]] * 2), cache

  decode = make_decoder(Model(), 3, [0], placement, sampling)
  ones = np.ones((2, 2), np.int32)
  out = np.asarray(decode(None, None, ones, ones == 1, np.arange(2)))
  assert out.tolist() == [[-2, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize('temperature', [np.nan, np.inf, -1.0])
def test_a_temperature_is_a_number(temperature):
  with pytest.raises(ValueError, match='temperature'):
    Sampling(temperature=temperature)


@pytest.mark.parametrize('task', [CHOICES, WRITING])
def test_an_evaluation_ends_in_an_error(task, model, placement, spoiled):
  evaluate = Evaluator(model, task, placement, max_new_tokens=4)
  with pytest.raises(
    ValueError, match=rf'{task.name}, (example|batch) 0.*{SAID}'
  ):
    evaluate(model.base, spoiled)


def test_completions_end_in_an_error(model, placement, spoiled):
  evaluate = Evaluator(model, WRITING, placement, max_new_tokens=4)
  with pytest.raises(ValueError, match=rf"example . \('Say .*'\).*{SAID}"):
    evaluate.generate(model.base, spoiled)


def test_no_score_is_printed_or_written(model, tmp_path, capsys):
  leaves, tree = jax.tree.flatten(model.base)
  spoiled = dataclasses.replace(
    model, base=jax.tree.unflatten(tree, [leaves[0] * np.nan, *leaves[1:]])
  )
  for mode in (run.score, run.infer):
    with pytest.raises(ValueError, match='base weights: .* NaN or infinite'):
      mode(tmp_path, spoiled, WRITING, adapter='none')
  assert not capsys.readouterr().out
  assert not list(tmp_path.rglob('*.json*'))


def test_the_harness_gets_no_number(model, spoiled):
  bridge = Bridge(model, spoiled)

  def request(*args):
    return types.SimpleNamespace(args=args)

  with pytest.raises(ValueError, match=SAID):
    bridge.loglikelihood([request('a', ' b')])
  with pytest.raises(ValueError, match=SAID):
    bridge.loglikelihood_rolling([request('abc')])
  with pytest.raises(ValueError, match=SAID):
    bridge.generate_until([request('a', {'max_gen_toks': 2})])


@pytest.mark.parametrize('bad', BAD)
def test_a_metric(bad):
  rows = [{'prompt': 'Why?', 'score': 1.0}, {'prompt': 'How?', 'score': bad}]
  message = rf"example 1 \('How\?'\): what score reads {SAID}"
  with pytest.raises(ValueError, match=message):
    metrics.score_all([metrics.mean_score()], rows)
  with pytest.raises(ValueError, match=SAID):
    bootstrap_interval([1.0, bad])
  broken = metrics.Metric('broken', lambda row: (1.0,), lambda column: bad)
  with pytest.raises(ValueError, match=f'metric broken: the score {SAID}'):
    metrics.score_all([broken], rows)


def test_huge_written_numbers_have_a_correlation():
  rows = [
    {'reference': str(i), 'prediction': text}
    for i, text in enumerate(['1e299', '-1e299', '9' * 299, 'nan', '0'])
  ]
  for metric in (metrics.pearson, metrics.spearman):
    found = metrics.score_all([metric(written=True)], rows)
    assert np.isfinite(next(iter(found.values()))['score'])


def test_a_scorer_that_gives_nan(model, placement):
  task = dataclasses.replace(WRITING, scorer=lambda text, row: np.nan)
  evaluate = Evaluator(model, task, placement, max_new_tokens=2)
  with pytest.raises(ValueError, match=r"example 0 \('Say yes'\).*score reads"):
    evaluate(model.base, None)


def test_a_study_ranks_no_nan(tmp_path):
  row = {'method': 'adamw', 'score': np.nan, 'metric': 'f1'}
  with pytest.raises(ValueError, match=f'a run of adamw: the score {SAID}'):
    ranking.score(row, 0)
  halves = [{'f1': 0.5}, {'f1': np.nan}]
  with pytest.raises(ValueError, match=SAID):
    ranking.score(row | {'score': 0.5, 'halves': halves}, 1)
  (tmp_path / study_rows.ROWS_FILE).write_text('{"flags": [], "score": NaN}\n')
  with pytest.raises(ValueError, match=r'results\.jsonl line 1.*NaN'):
    study_rows.read_rows(tmp_path)
  run_folder = tmp_path / '0000'
  (run_folder / 'evaluation').mkdir(parents=True)
  for name, value in (
    ('run.json', {'model': 'm', 'task': 't'}),
    ('settings.json', {}),
    ('evaluation/after.json', {'metric': 'accuracy', 'score': np.nan}),
  ):
    (run_folder / name).write_text(json.dumps(value))
  with pytest.raises(ValueError, match=r'after\.json.*NaN'):
    study_rows.read_run(run_folder)
