"""Labels and numbers of an encoder, for every example of a split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lora_opt.evaluation import metrics
from lora_opt.evaluation.finite import named, require_finite

_LABELS = ('classification', 'image_classification')
# Pictures of the first so many examples are kept for the report.
_PICTURES = 200


def check_outputs(model: Any, task: Any) -> None:
  """Raises ValueError unless a model has the outputs that a task asks for.

  Args:
    model: has `outputs`.
    task: of kind classification or image_classification, with `class_names`,
      or regression.
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
  """A model with its outputs in the order of a task's labels, by their names.

  Args:
    model: one that has `named`, as encoders have; others are returned as they
      are.
    task: a task, or what has several in `tasks`.

  Raises:
    ValueError: the head of the model is for other labels, or the parts of a
      mixture have labels of their own.
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
  """What a task of this kind is judged by, unless it says so itself."""
  if task.kind == 'regression':
    return (metrics.pearson(), metrics.spearman())
  return (metrics.accuracy(),)


def add_pictures(
  predictions: Sequence[dict[str, Any]], examples: Sequence[Any]
) -> None:
  """Gives the first predictions of a task of images small pictures of them.

  Args:
    predictions: of `judge`, changed in place.
    examples: in the same order; what is to have a picture has `image`, with a
      `thumbnail()` that is a data URL.
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
  """Outputs of every example, in the order of the split.

  Args:
    batches: of a task's `label_batches`: arrays for the model, and whose
      example each row is.
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
  """The loss of one example and what is reported of it.

  Args:
    example: has prompt, texts, choices and answer; number for a regression.
    outputs: (outputs,), logits or the number.
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
