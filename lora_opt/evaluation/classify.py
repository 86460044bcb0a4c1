"""Predicts labels and numbers with an encoder, for every example of a split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lora_opt.evaluation import metrics
from lora_opt.evaluation.finite import named, require_finite

_LABELS = ('classification', 'image_classification')
# The pictures of this many first examples are kept for the report.
_PICTURES = 200


def check_outputs(model: Any, task: Any) -> None:
  """Raises ValueError unless a model has the outputs that a task needs.

  Args:
    model: a model with `outputs`.
    task: a task of kind classification or image_classification, with
      `class_names`, or of kind regression.
  """
  wanted = {
    'classification': lambda: len(task.class_names),
    'image_classification': lambda: len(task.class_names),
    'regression': lambda: 1,
  }
  if task.kind not in wanted:
    raise ValueError(
      f'task {task.name!r} is of kind {task.kind}, and the model says labels '
      f'or numbers: it needs one of {", ".join(wanted)}'
    )
  if model.outputs != wanted[task.kind]():
    raise ValueError(
      f'task {task.name!r} needs {wanted[task.kind]()} output(s), the model '
      f'has outputs={model.outputs}: set the one to the other'
    )


def named_for(model: Any, task: Any) -> Any:
  """Returns a model with its outputs matched by name to a task's labels.

  Args:
    model: a model with a method `named`, as encoders have. Other models are
      returned unchanged.
    task: a task, or a mixture with several in `tasks`.

  Raises:
    ValueError: the model's head is for other labels, or the tasks of a mixture
      have different labels.
  """
  if not hasattr(model, 'named'):
    return model
  parts = getattr(task, 'tasks', (task,))
  for part in parts:
    check_outputs(model, part)
  names = {
    part.name: tuple(part.class_names) for part in parts if part.kind in _LABELS
  }
  if len(set(names.values())) > 1:
    listed = '; '.join(f'{n}: {", ".join(each)}' for n, each in names.items())
    raise ValueError(
      f'the tasks of mixture {task.name!r} have labels of their own, which one '
      f'head cannot have: {listed}'
    )
  if not names:
    return model
  part = next(part for part in parts if part.name in names)
  try:
    words = part.label_names or ()
    return model.named(part.class_names, words or part.class_names)
  except ValueError as error:
    raise ValueError(f'task {part.name!r}: {error}') from error


def usual_metrics(task: Any) -> Sequence[metrics.Metric]:
  """The metrics for a task of this kind, unless it names its own."""
  if task.kind == 'regression':
    return (metrics.pearson(), metrics.spearman())
  return (metrics.accuracy(),)


def add_pictures(
  predictions: Sequence[dict[str, Any]], examples: Sequence[Any]
) -> None:
  """Adds small pictures to the first predictions of an image task.

  Args:
    predictions: predictions of `judge`, changed in place.
    examples: the examples in the same order. Those with a picture have `image`,
      whose `thumbnail()` returns a data URL.
  """
  for index, prediction in enumerate(predictions[:_PICTURES]):
    image = getattr(examples[index], 'image', None)
    if image is not None:
      prediction['picture'] = image.thumbnail()


def collect_outputs(
  batches: Iterable[Any],
  predict: Callable[[Mapping[str, np.ndarray]], np.ndarray],
  count: int,
) -> np.ndarray:
  """The model's outputs for every example, in the order of the split.

  Args:
    batches: batches from a task's `label_batches`: arrays for the model, and
      the example that each row belongs to.
    predict: maps these arrays to (rows, 1, outputs).
    count: number of examples.

  Returns:
    (count, outputs) float64.
  """
  found: list[Any] = [None] * count
  for batch in batches:
    outputs = np.asarray(predict(batch.arrays), np.float64)[:, 0]
    for index, row in zip(batch.example, outputs, strict=True):
      if index >= 0:
        found[index] = row
  return np.stack(found)


def judge(
  example: Any, outputs: np.ndarray, place: str = 'example'
) -> tuple[float, dict[str, Any]]:
  """Computes the loss of one example, and its entry in the report.

  Args:
    example: has prompt, texts, choices and answer; number for a regression.
    outputs: (outputs,), logits or the predicted number.
    place: which example it is, for messages.

  Returns:
    Cross-entropy in nats or squared error, and a JSON-able dict: prompt,
    reference, prediction, score and, for labels, choices, answer, choice and
    log_likelihoods, for numbers answer, value and no choices. The score is 1
    for the right label; for a number it falls with the distance.

  Raises:
    ValueError: an output is not finite.
  """
  prompt = '\n'.join(example.texts) or example.prompt
  require_finite(outputs, 'an output of the model', named(place, prompt))
  shown = {'prompt': prompt}
  if example.number is not None:
    value = float(outputs[0])
    error = abs(value - example.number)
    return error**2, shown | {
      'reference': f'{example.number:g}',
      'prediction': f'{value:.3g}',
      'score': 1 / (1 + error),
      'answer': example.number,
      'value': value,
    }
  logs = outputs - np.logaddexp.reduce(outputs)
  best, answer = int(np.argmax(logs)), example.answer
  return -logs[answer], shown | {
    'reference': example.choices[answer],
    'prediction': example.choices[best],
    'score': float(best == answer),
    'choices': list(example.choices),
    'answer': answer,
    'choice': best,
    'log_likelihoods': [round(float(x), 5) for x in logs],
  }
