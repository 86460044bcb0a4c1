"""Metrics against scikit-learn, SciPy, rouge-score and the papers' rules."""

import warnings

import numpy as np
import pytest
from rouge_score import rouge_scorer
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lora_opt.data.tasks import Classification
from lora_opt.evaluation import metrics
from lora_opt.evaluation.bootstrap import bootstrap_interval
from lora_opt.evaluation.evaluate import Evaluator

RNG = np.random.default_rng(5)
LABELS = {
  'random': (RNG.integers(0, 2, 40), RNG.integers(0, 2, 40)),
  'three labels': (RNG.integers(0, 3, 40), RNG.integers(0, 3, 40)),
  'one label predicted': (np.array([0, 1, 1, 0]), np.array([1, 1, 1, 1])),
  'nothing right': (np.array([0, 1]), np.array([1, 0])),
  'no positive anywhere': (np.array([0, 0]), np.array([0, 0])),
  'one example': (np.array([1]), np.array([1])),
}


def labelled(answers, choices):
  return [
    {'answer': int(a), 'choice': int(c)}
    for a, c in zip(answers, choices, strict=True)
  ]


def score(metric, rows):
  return metric.summary(*metric.columns(rows))


@pytest.mark.parametrize('case', LABELS)
def test_labels_as_scikit_learn(case):
  answers, choices = LABELS[case]
  rows = labelled(answers, choices)
  assert score(metrics.accuracy(), rows) == sklearn_metrics.accuracy_score(
    answers, choices
  )
  with warnings.catch_warnings():  # of a single label, which counts as 0
    warnings.simplefilter('ignore')
    expected = sklearn_metrics.matthews_corrcoef(answers, choices)
  assert score(metrics.matthews(), rows) == expected
  averages = ['macro', 'micro', 'weighted']
  for average in averages if case == 'three labels' else ['binary', *averages]:
    assert score(metrics.f1(average), rows) == sklearn_metrics.f1_score(
      answers, choices, average=average, zero_division=0
    )


def test_numbers_as_scipy():
  answers = RNG.integers(0, 6, 30) / 2  # with ties
  values = answers + RNG.normal(size=30)
  rows = [
    {'answer': a, 'value': v} for a, v in zip(answers, values, strict=True)
  ]
  pearson = score(metrics.pearson(), rows)
  spearman = score(metrics.spearman(), rows)
  assert pearson == stats.pearsonr(answers, values).statistic
  assert spearman == stats.spearmanr(answers, values).statistic


@pytest.mark.parametrize('values', [[2.0, 2.0, 2.0], [1.0]])
def test_an_undefined_correlation_is_zero(values):
  rows = [{'answer': float(i), 'value': v} for i, v in enumerate(values)]
  found = metrics.score_all([metrics.pearson(), metrics.spearman()], rows)
  assert [found[name]['score'] for name in found] == [0, 0]
  assert [found[name]['interval'] for name in found] == [[0, 0], [0, 0]]


TEXTS = [
  ('the cat sat on the mat', ['the cat was on the mat', 'a dog']),
  ('running quickly', ['He runs quick.']),
  ('', ['something']),
  ('no overlap', ['entirely different words']),
  ('Same, TEXT!', ['same text']),
  ('12 apples', ['12 apples', '']),
  ('naïve café 東京', ['naïve cafe']),
]


@pytest.mark.parametrize('stem', [True, False])
def test_rouge_l_as_the_best_of_rouge_score(stem):
  scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=stem)
  rows = [{'prediction': p, 'references': r} for p, r in TEXTS]
  (found,) = metrics.rouge_l(stem).columns(rows)
  expected = [
    max(scorer.score(text, p)['rougeL'].fmeasure for text in r)
    for p, r in TEXTS
  ]
  assert found.tolist() == expected
  assert score(metrics.rouge_l(stem), rows) == np.mean(expected)


def test_exact_match_of_any_reference():
  rows = [{'prediction': p, 'references': r} for p, r in TEXTS]
  assert metrics.exact_match().columns(rows)[0].tolist() == [
    0, 0, 0, 0, 1, 1, 0,
  ]  # fmt: skip
  strict = metrics.exact_match(loose=False)
  assert strict.columns(rows)[0].tolist() == [0, 0, 0, 0, 0, 1, 0]
  assert score(strict, [{'prediction': ' a ', 'reference': 'a'}]) == 1


def test_the_interval_holds_the_mean_and_narrows():
  few = bootstrap_interval([0, 1] * 10)
  many = bootstrap_interval([0, 1] * 1000)
  assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
  values = RNG.normal(size=400)
  low, high = bootstrap_interval(values)
  half = 1.96 * values.std() / 20
  # The end of a percentile interval of 2000 draws is known to some 6 %.
  np.testing.assert_allclose(
    [low, high], [values.mean() - half, values.mean() + half], atol=half / 8
  )


def test_the_interval_of_a_correlation_is_that_of_fisher():
  x = RNG.normal(size=300)
  y = 0.6 * x + 0.8 * RNG.normal(size=300)
  rows = [{'answer': a, 'value': v} for a, v in zip(x, y, strict=True)]
  result = metrics.score_all([metrics.pearson()], rows)['pearson']
  z, half = np.arctanh(result['score']), 1.96 / np.sqrt(297)
  expected = np.tanh([z - half, z + half])
  np.testing.assert_allclose(result['interval'], expected, atol=0.02)


def test_a_task_names_its_metrics_and_the_first_is_the_headline(
  model, placement
):
  rows = [{'sentence': f'row {i}', 'label': i % 2} for i in range(4)]
  task = Classification(
    name='labels',
    train=rows,
    eval=rows,
    prompt='{sentence}:',
    label_names=('bad', 'good'),
    chat=False,
    metrics=[metrics.matthews(), metrics.f1(), metrics.accuracy()],
  )
  result = Evaluator(model, task, placement, batch_size=2)(model.base, None)
  assert list(result['metrics']) == ['matthews', 'f1', 'accuracy']
  assert result['metric'] == 'matthews'
  assert result['score'] == result['metrics']['matthews']['score']
  low, high = result['metrics']['f1']['interval']
  assert low <= result['metrics']['f1']['score'] <= high


def test_numbers_can_be_read_from_texts():
  texts = [('3.8', 'about 3.5'), ('1.0', 'it is 1.25'), ('4.0', 'none')]
  rows = [{'reference': r, 'prediction': p} for r, p in texts]
  numbers = [
    {'answer': a, 'value': v} for a, v in ((3.8, 3.5), (1, 1.25), (4, -1))
  ]
  for metric in (metrics.pearson, metrics.spearman):
    found = metrics.score_all([metric(written=True)], rows)
    assert found == metrics.score_all([metric()], numbers)
