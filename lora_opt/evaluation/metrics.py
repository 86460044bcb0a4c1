"""Metrics: small objects that turn a task's predictions into scores.

A prediction is a dict (see `lora_opt.evaluation.evaluate`). A metric defines
which numbers it reads from each and how they make a score. A task lists its
metrics,

  tasks.Classification.metrics = [@metrics.matthews(), @metrics.accuracy()]

and each is reported with its bootstrap interval; the first is the headline.
Agreement, correlation and overlap of texts use scikit-learn, SciPy and NLTK's
stemmer, which are imported when a metric is first used.
"""

import contextlib
import dataclasses
import functools
import math
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lora_opt.evaluation import rouge
from lora_opt.evaluation.bootstrap import bootstrap_interval
from lora_opt.evaluation.finite import named, require_finite
from lora_opt.reading.numbers import last_number

Prediction = Mapping[str, Any]
# Keys in a result: the score is a loss, or another number that is not a
# fraction of 1. All other scores are fractions of 1.
LOWER, NUMBER = 'lower_is_better', 'is_number'
_SCORER = (
  "Correct what gave this number: the task's scorer, or the metric's reader"
)
# Most characters of a generated text, or four times the length of the longest
# reference if that is more.
_LONGEST = 50_000


@dataclasses.dataclass(frozen=True)
class Metric:
  """One score of a list of predictions.

  Attributes:
    name: the name in reports.
    read: extracts the numbers that are needed from one prediction, as a tuple.
    summary: computes the score from one array over all predictions for each of
      these numbers.
    lower_is_better: whether it is a loss.
    is_number: whether it is neither a loss nor a fraction of 1.
  """

  name: str
  read: Callable[[Prediction], tuple[float, ...]]
  summary: Callable[..., float] = np.mean
  lower_is_better: bool = False
  is_number: bool = False

  def columns(self, predictions: Sequence[Prediction]) -> list[np.ndarray]:
    """The arguments of `summary`, read from the predictions.

    Raises:
      ValueError: a number is not finite.
    """
    read = [self.read(prediction) for prediction in predictions]
    for index, (found, prediction) in enumerate(
      zip(read, predictions, strict=True)
    ):
      if not all(map(math.isfinite, found)):
        place = named(f'example {index}', str(prediction.get('prompt', '')))
        require_finite(found, f'what {self.name} reads', place, _SCORER)
    return [np.asarray(column) for column in zip(*read, strict=True)]


def checked_score(metric: Metric, columns: Sequence[np.ndarray]) -> float:
  """A metric's score of the columns that it read.

  Raises:
    ValueError: it is not finite.
  """
  score = float(metric.summary(*columns))
  advice = f'Correct the summary of {metric.name}'
  require_finite(score, 'the score', f'metric {metric.name}', advice)
  return score


def score_all(
  metrics: Sequence[Metric], predictions: Sequence[Prediction]
) -> dict[str, dict[str, Any]]:
  """Every metric's score with its 95 % interval.

  >>> score_all([accuracy()], [{'answer': 1, 'choice': 1}] * 3)
  {'accuracy': {'score': 1.0, 'interval': [1.0, 1.0]}}
  """
  results = {}
  for metric in metrics:
    columns = metric.columns(predictions)
    score = checked_score(metric, columns)
    low, high = bootstrap_interval(*columns, summary=metric.summary)
    results[metric.name] = {'score': score, 'interval': [low, high]}
    if metric.lower_is_better:
      results[metric.name][LOWER] = True
    if metric.is_number:
      results[metric.name][NUMBER] = True
  return results


def headline(result: Mapping[str, Any], loss: str = 'loss') -> str:
  """Describes the result of an evaluation in a few words.

  Args:
    result: what an evaluator returned.
    loss: the name of its loss.

  >>> headline({'metric': 'accuracy', 'score': 0.5, 'loss': 1.25})
  'accuracy 0.500, loss 1.2500'
  """
  if result.get(LOWER):
    return f'{result["metric"]} {result["score"]:.4f}'
  return (
    f'{result["metric"]} {result["score"]:.3f}, {loss} {result["loss"]:.4f}'
  )


def mean_score(name: str = 'score', *, lower_is_better: bool = False) -> Metric:
  """The mean of the scores that the task itself gave the predictions.

  Args:
    name: the name in reports.
    lower_is_better: whether it is a loss.
  """
  return Metric(
    name, lambda row: (row['score'],), lower_is_better=lower_is_better
  )


def accuracy() -> Metric:
  """How often the likeliest choice, or the predicted label, is the right one.

  A choice's likelihood is the sum over its tokens; it favours short choices.
  """
  return _share_right('accuracy', 'choice')


def accuracy_per_token() -> Metric:
  """Accuracy with log-likelihoods divided by the choice's number of tokens."""
  return _share_right('accuracy_per_token', 'choice_per_token')


def accuracy_per_byte() -> Metric:
  """Accuracy with log-likelihoods divided by the choice's UTF-8 bytes.

  Unlike the tokens, the bytes are the same for every model.
  """
  return _share_right('accuracy_per_byte', 'choice_per_byte')


def likelihood() -> Metric:
  """Geometric mean of the probabilities of the right completion's tokens.

  exp(-loss), between 0 and 1, with equal weight for every token of every
  example.

  >>> row = {'answer': 0, 'log_likelihoods': [-2 * np.log(2)], 'tokens': [2]}
  >>> round(score_all([likelihood()], [row])['likelihood']['score'], 6)
  0.5
  """

  def read(row):
    right = row['answer']
    return row['log_likelihoods'][right], row['tokens'][right]

  def summary(log_likelihoods, tokens):
    return float(np.exp(np.sum(log_likelihoods) / np.sum(tokens)))

  return Metric('likelihood', read, summary)


def answer_loss() -> Metric:
  """The loss of the right answers; lower is better.

  Of choices and completions the mean over all their tokens, of labels the mean
  over examples, both in nats; of numbers the mean squared error.

  >>> row = {'answer': 0, 'log_likelihoods': [-6.0, -1.0], 'tokens': [2, 1]}
  >>> score_all([answer_loss()], [row])['answer_loss']['score']
  3.0
  """

  def read(row):
    if 'value' in row:
      return (row['value'] - row['answer']) ** 2, 1
    right = row['answer']
    tokens = row['tokens'][right] if 'tokens' in row else 1
    return -row['log_likelihoods'][right], tokens

  def summary(losses, tokens):
    return float(np.sum(losses) / np.sum(tokens))

  return Metric('answer_loss', read, summary, lower_is_better=True)


def reward_margin() -> Metric:
  """How much higher the chosen answer's reward is than the rejected one's.

  It is not a fraction of 1, and not the headline. The headline is
  `reward_accuracy`, which says how often the reward is higher.
  """
  return Metric('reward_margin', lambda row: (row['margin'],), is_number=True)


def f1(average: str = 'binary', positive: int = 1) -> Metric:
  """F1 of the predicted labels, as scikit-learn computes it; 0 if undefined.

  Args:
    average: 'binary' for the F1 of one label; 'macro', 'micro' or 'weighted'
      for an average over all labels.
    positive: index of the label that 'binary' refers to.
  """

  def binary(answers, choices):
    right, said = answers == positive, choices == positive
    total = np.sum(right) + np.sum(said)
    return 2 * np.sum(right & said) / total if total else 0.0

  def several(answers, choices):
    from sklearn.metrics import f1_score

    return f1_score(
      answers, choices, average=average, pos_label=positive, zero_division=0
    )

  if average == 'binary':  # with scikit-learn's checks it would take seconds
    return Metric('f1', _labels, binary)
  return Metric(f'f1_{average}', _labels, several)


def matthews() -> Metric:
  """Matthews correlation for any number of labels; 0 if undefined."""

  def summary(answers, choices):
    _, found = np.unique(np.stack([answers, choices]), return_inverse=True)
    answers, choices = found.reshape(2, -1)
    size, count = len(answers), np.max(found) + 1
    right = np.bincount(answers, minlength=count)
    said = np.bincount(choices, minlength=count)
    together = size * np.sum(answers == choices) - right @ said
    alone = float(size**2 - right @ right) * float(size**2 - said @ said)
    return float(together / np.sqrt(alone)) if alone else 0.0

  return Metric('matthews', _labels, summary)


def pearson(written: bool = False) -> Metric:
  """Linear correlation of predicted and right numbers; 0 if undefined.

  Args:
    written: take the last number in each text, or -1 if it contains none.
  """
  return Metric(
    'pearson',
    _written_numbers if written else _numbers,
    functools.partial(_correlation, 'pearsonr'),
  )


def spearman(written: bool = False) -> Metric:
  """Rank correlation of predicted and right numbers; 0 if undefined.

  Args:
    written: as for `pearson`.
  """
  return Metric(
    'spearman',
    _written_numbers if written else _numbers,
    functools.partial(_correlation, 'spearmanr'),
  )


def exact_match(loose: bool = True) -> Metric:
  """How often the text equals one of its references.

  Args:
    loose: ignore case, punctuation and repeated white space, as in
      Super-NaturalInstructions.
  """
  form = loosely if loose else str.strip

  def read(row):
    if _too_long(row):
      return (0.0,)
    found = form(row['prediction'])
    return (float(any(found == form(text) for text in references(row))),)

  return Metric('exact_match', read)


def rouge_l(stem: bool = True) -> Metric:
  """F-measure of the longest common subsequence of words, as in rouge-score.

  The best of all references counts, as in Super-NaturalInstructions.

  Args:
    stem: compare the stems of words (Porter).
  """

  def read(row):
    if _too_long(row):
      return (0.0,)
    written = row['prediction']
    found = (
      rouge.f_measure(text, written, stem=stem) for text in references(row)
    )
    return (max(found),)

  return Metric('rouge_l', read)


def _too_long(row: Prediction) -> bool:
  """Whether a text is so long that it scores 0 without being read."""
  longest = max(map(len, references(row)))
  return len(row['prediction']) > max(_LONGEST, 4 * longest)


def references(prediction: Prediction) -> Sequence[str]:
  """All texts that count as right."""
  return prediction.get('references') or [prediction['reference']]


def loosely(text: str) -> str:
  """The text without the differences that a loose comparison ignores.

  >>> loosely('  The  Answer: 42. ')
  'the answer 42'
  """
  kept = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(kept.split())


def _share_right(name: str, field: str) -> Metric:
  return Metric(name, lambda row: (float(row[field] == row['answer']),))


def _labels(row: Prediction) -> tuple[int, int]:
  return row['answer'], row['choice']


def _numbers(row: Prediction) -> tuple[float, float]:
  return row['answer'], row['value']


def _written_numbers(row: Prediction) -> tuple[float, float]:
  return _last_number(row['reference']), _last_number(row['prediction'])


def _last_number(text: str) -> float:
  found = last_number(text)
  return -1.0 if found is None else float(found)


def _correlation(kind: str, answers: np.ndarray, values: np.ndarray) -> float:
  from scipy import stats

  if len(answers) < 2 or np.ptp(answers) == 0 or np.ptp(values) == 0:
    return 0.0
  # The scale does not matter, and a number such as 1e299 would overflow when
  # squared. Scaling by powers of two is exact.
  answers, values = (
    np.ldexp(x, -np.frexp(np.max(np.abs(x)))[1]) for x in (answers, values)
  )
  with _resamples_may_be_poor():
    return float(getattr(stats, kind)(answers, values).statistic)


@contextlib.contextmanager
def _resamples_may_be_poor():
  """Silences warnings about a single label or nearly constant numbers."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield
