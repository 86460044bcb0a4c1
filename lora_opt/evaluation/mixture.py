"""Evaluates mixtures task by task."""

import math
from collections.abc import Callable, Sequence
from typing import Any

_MEAN = 'mean_score'


def make_evaluator(
  evaluator: Callable[..., Any], model: Any, task: Any, placement: Any
) -> Callable[..., dict[str, Any]]:
  """The evaluation of a task, or of every task of a mixture.

  Args:
    evaluator: makes the evaluation of one task from (model, task, placement).
    model: see `lora_opt.evaluation.evaluate.Evaluator`.
    task: a task, or a mixture with several in `tasks`.
    placement: as for `evaluator`.
  """
  if not hasattr(task, 'tasks'):
    return evaluator(model, task, placement)
  parts = [evaluator(model, part, placement) for part in task.tasks]
  return MixtureEvaluator(task, parts)


class MixtureEvaluator:
  """Evaluates several tasks and the mean of their headline scores.

  The mean's interval assumes that the tasks are independent: the distances from
  score to bound are added in quadrature.
  """

  def __init__(self, mixture: Any, evaluators: Sequence[Callable[..., Any]]):
    self._mixture = mixture
    self._evaluators = evaluators

  def __call__(self, base: Any, lora: Any, step: int = 0) -> dict[str, Any]:
    """Evaluates every task; see `Evaluator`.

    Returns:
      What `Evaluator` returns, with the mean as headline, the headline of each
      task among the metrics under the task's name, the mean of the losses, and
      the task of each prediction.
    """
    results = [evaluate(base, lora, step) for evaluate in self._evaluators]
    mean = mean_with_interval(
      [result['score'] for result in results],
      [result['interval'] for result in results],
    )
    each = {
      f'{result["task"]}_{result["metric"]}': {
        'score': result['score'],
        'interval': result['interval'],
      }
      for result in results
    }
    return {
      'step': int(step),
      'task': self._mixture.name,
      'metric': _MEAN,
      **mean,
      'metrics': {_MEAN: mean, **each},
      'loss': sum(result['loss'] for result in results) / len(results),
      'num_examples': sum(result['num_examples'] for result in results),
      'predictions': [
        {'task': result['task'], **prediction}
        for result in results
        for prediction in result['predictions']
      ],
    }

  def generate(self, base: Any, lora: Any) -> list[dict[str, Any]]:
    """Completions for the prompts of every task, with the task of each."""
    return [
      {'task': task.name, **prediction}
      for task, evaluate in zip(
        self._mixture.tasks, self._evaluators, strict=True
      )
      for prediction in evaluate.generate(base, lora)
    ]


def mean_with_interval(
  scores: Sequence[float], intervals: Sequence[Sequence[float]]
) -> dict[str, Any]:
  """The mean of independent scores, and its interval.

  >>> mean_with_interval([0.5, 0.5], [(0.2, 0.6), (0.1, 0.5)])
  {'score': 0.5, 'interval': [0.25, 0.55]}
  """
  count = len(scores)
  mean = sum(scores) / count
  pairs = list(zip(scores, intervals, strict=True))
  below = math.hypot(*(score - low for score, (low, _) in pairs)) / count
  above = math.hypot(*(high - score for score, (_, high) in pairs)) / count
  return {'score': mean, 'interval': [mean - below, mean + above]}
