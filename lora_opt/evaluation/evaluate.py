"""Scores adapters on the evaluation split of a task."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lora_opt import progress
from lora_opt.devices.partitioning import Placement
from lora_opt.evaluation import classify, metrics
from lora_opt.evaluation import likelihood as likelihoods
from lora_opt.evaluation.decoding import (
  GREEDY,
  NO_TOKEN,
  Sampling,
  make_decoder,
)
from lora_opt.evaluation.finite import named, not_finite, require_finite
from lora_opt.reading import parts
from lora_opt.reading.parts import PREFERENCE

# Most positions in a row for the loss of generation tasks, as for choices.
LONGEST = 2048


class Evaluator:
  """Loss and main metric of one model on one task, for any adapters.

  - Tasks with choices: the choice with the greatest log-likelihood is the
    prediction. All choices of a question share one pass over its prompt.
  - Generation tasks: completions are decoded with a cache and scored by the
    task. For these and for choices, the loss is the mean negative
    log-likelihood of a token of the right completion.
  - Preferences: the score is whether the chosen answer gained on the rejected
    one, compared with the base without an adapter. The loss is the mean of the
    objective's loss of each pair.
  - Encoders: the prediction is the likeliest label, or the number; the loss is
    the mean over examples.
  """

  def __init__(
    self,
    model: Any,
    task: Any,
    placement: Placement,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    loss_batch_size: int = 4,
    length: int = 512,
    objective: Any = None,
  ):
    """Prepares the compiled functions; nothing runs yet.

    Args:
      model: a `lora_opt.models.CausalLM`, or a model with the same interface.
      task: a task of `lora_opt.data.tasks`, or one with the same interface.
      placement: from `lora_opt.devices.partitioning.Partitioner.place`.
      batch_size: questions or prompts in a batch, rounded up so that the
        devices share them evenly.
      max_new_tokens: the most tokens in a generated completion.
      sampling: how its tokens are drawn; by default the likeliest is taken.
      loss_batch_size: packed rows in a batch for the loss of generation tasks,
        rounded up in the same way.
      length: positions in such a row, or more if an example needs them, up to
        `LONGEST`. Texts of an encoder are cut at this length.
      objective: the training objective; `objective.DPO()` judges the pairs of a
        preference task.
    """
    if batch_form(model) == 'text_to_image':
      raise ValueError(
        f'{model.name} draws pictures: its evaluation is '
        '@pictures.PictureEvaluator, as configs/runs/dreambooth.gin sets it'
      )
    self._model = model
    self._task = task
    self._placement = placement
    shards = placement.row_shards
    self._batch_size = -(-batch_size // shards) * shards
    self._loss_batch_size = -(-loss_batch_size // shards) * shards
    self._length = length
    self._objective = objective
    self._base_likelihood: tuple[Any, np.ndarray] | None = None
    if getattr(task, 'kind', None) == PREFERENCE:
      parts.check_objective(objective, task)
    self._labels = batch_form(model) in ('encoder', 'image')
    # Results are replicated on all devices, so that every process sees them.
    if self._labels:
      classify.check_outputs(model, task)
      self._predict = placement.jit(
        model.predict, out_shardings=placement.whole
      )
      return
    self._losses = placement.jit(
      model.token_losses, out_shardings=placement.whole
    )
    self._max_new_tokens = max_new_tokens
    self._sampling = sampling

  def __call__(self, base: Any, lora: Any, step: int = 0) -> dict[str, Any]:
    """Evaluates adapters on the evaluation split.

    Args:
      base: the frozen parameters.
      lora: the adapters.
      step: number of finished training steps, which is recorded.

    Returns:
      A JSON-able dict: step, task, metrics (score and 95 % interval of each, by
      name), metric (the name of the first), its score and interval, loss,
      num_examples, halves (the scores of the even and of the odd examples: the
      former to choose settings by, the latter to report), overlap (how many
      examples are also in the training data, and the metrics without them; left
      out if there are none or the training data cannot be read) and predictions
      (a dict per example: prompt, reference, prediction, score, and more for
      choices, see `likelihood.predict`).
    """
    examples = self._task.examples('eval')
    if self._labels:
      loss, predictions = self._label(base, lora, examples)
      classify.add_pictures(predictions, examples)
    elif self._task.kind == 'generation':
      loss = self._completion_loss(base, lora)
      predictions = self.generate(base, lora)
    elif self._task.kind == PREFERENCE:
      loss, predictions = self._compare(base, lora, examples)
    else:
      loss, predictions = self._choose(base, lora, examples)
    scores = metrics.score_all(self._metrics(), predictions)
    headline = next(iter(scores))
    return {
      'step': int(step),
      'task': self._task.name,
      'metric': headline,
      **scores[headline],
      'metrics': scores,
      'loss': loss,
      'num_examples': len(examples),
      'halves': [self._scores(predictions[start::2]) for start in (0, 1)],
      **self._without_overlap(predictions),
      'predictions': predictions,
    }

  def generate(self, base: Any, lora: Any) -> list[dict[str, Any]]:
    """Completes the prompt of every example of the evaluation split.

    A model with labels or numbers as outputs predicts those instead.

    Returns:
      For each example a dict with prompt, reference, references (if several
      texts are right), prediction and score.
    """
    examples = self._task.examples('eval')
    if self._labels:
      return self._label(base, lora, examples)[1]
    predictions: list[dict[str, Any]] = [{} for _ in examples]
    batches = self._task.prompt_batches(
      self._model.tokenizer,
      batch_size=self._batch_size,
      form=batch_form(self._model),
    )
    stops, decode = self._decoder
    for batch in self._progress(batches):
      if self._has_table_of_positions:
        longest = int(np.max(np.sum(batch.valid, axis=1)))
        self._check_positions(longest + self._max_new_tokens - 1)
      names = ('tokens', 'valid', 'example')
      prompt = self._placement.put_rows(
        {name: getattr(batch, name) for name in names}
      )
      completions = np.asarray(
        decode(base, lora, *(prompt[name] for name in names))
      )
      for index, ids in zip(batch.example, completions, strict=True):
        if index >= 0:
          example = examples[int(index)]
          self._check_ids(ids, int(index), example)
          text = stops.text(ids)
          predictions[index] = {
            'prompt': example.prompt,
            'reference': example.completion,
            'prediction': text,
            'score': float(self._task.score(example, text)),
          }
          if example.references:
            predictions[index]['references'] = list(example.references)
    return predictions

  def _check_ids(self, ids: np.ndarray, index: int, example: Any) -> None:
    if NO_TOKEN in ids:
      number = int(np.argmax(ids == NO_TOKEN))
      place = named(self._place(index), example.prompt)
      raise not_finite(f'a logit of answer token {number} is not finite', place)

  def _place(self, index: int) -> str:
    return f'{self._task.name}, example {index}'

  @property
  def _has_table_of_positions(self) -> bool:
    """Whether positions come from a table of limited size, as in GPT-2."""
    return getattr(self._model.config, 'learned_positions', False)

  def _check_positions(self, needed: int) -> None:
    config = self._model.config
    if needed > config.max_length:
      raise ValueError(
        f'an example of {self._task.name} needs {needed} positions, '
        f'{self._model.name} has {config.max_length}: give it a shorter '
        'prompt, or fewer MAX_NEW_TOKENS'
      )

  @functools.cached_property
  def _decoder(self):
    """The conditions that end a completion, and the compiled decoder."""
    stops = self._task.stops(self._model.tokenizer)
    return stops, make_decoder(
      self._model,
      self._max_new_tokens,
      stops.ids,
      self._placement,
      self._sampling,
      stops.sequences,
    )

  def _label(self, base, trainable, examples):
    batches = self._task.label_batches(
      self._model.tokenizer,
      batch_size=self._batch_size,
      longest=min(
        self._length, getattr(self._model.config, 'max_length', self._length)
      ),
      form=batch_form(self._model),
    )
    outputs = classify.collect_outputs(
      self._progress(batches),
      lambda arrays: self._predict(
        base, trainable, self._placement.put_rows(arrays)
      ),
      len(examples),
    )
    losses, predictions = zip(
      *(
        classify.judge(example, row, self._place(index))
        for index, (example, row) in enumerate(
          zip(examples, outputs, strict=True)
        )
      ),
      strict=True,
    )
    return float(np.mean(losses)), list(predictions)

  def _choose(self, base, lora, examples):
    likelihood, tokens = self._likelihoods(base, lora, examples)
    predictions = [
      likelihoods.predict(
        example, likelihood[index], tokens[index], self._place(index)
      )
      for index, example in enumerate(examples)
    ]
    answers = [example.answer for example in examples]
    right = (np.arange(len(answers)), answers)
    loss = -likelihood[right].sum() / tokens[right].sum()
    return float(loss), predictions

  def _compare(self, base, lora, examples):
    """Loss of the pairs, and their predictions with margins and likelihoods."""
    adapted, tokens = self._likelihoods(base, lora, examples)
    if self._base_likelihood is None or self._base_likelihood[0] is not base:
      self._base_likelihood = base, self._likelihoods(base, None, examples)[0]
    without = self._base_likelihood[1]
    losses, margins, right = map(
      np.asarray, self._objective.judge(adapted, without)
    )
    predictions = []
    for index, example in enumerate(examples):
      place = self._place(index)
      require_finite(without[index], 'a likelihood by the base', place)
      row = likelihoods.predict(example, adapted[index], tokens[index], place)
      row['base_log_likelihoods'] = [round(float(x), 5) for x in without[index]]
      row['margin'] = float(margins[index])
      predictions.append(row | {'score': float(right[index])})
    return float(np.mean(losses)), predictions

  def _likelihoods(self, base, lora, examples):
    """Log-likelihoods and token counts of choices, both (examples, choices)."""
    batches = self._task.choice_batches(
      self._model.tokenizer,
      batch_size=self._batch_size,
      form=batch_form(self._model),
    )

    def losses(arrays):
      if self._has_table_of_positions:
        self._check_positions(int(np.max(arrays['positions'])) + 1)
      return self._losses(base, lora, self._placement.put_rows(arrays))

    return likelihoods.sum_over_choices(
      self._progress(batches),
      losses,
      (len(examples), max(len(e.choices) for e in examples)),
    )

  def _scores(self, predictions) -> dict[str, float]:
    """The score by every metric; empty without predictions."""
    if not predictions:
      return {}
    return {
      metric.name: metrics.checked_score(metric, metric.columns(predictions))
      for metric in self._metrics()
    }

  def _without_overlap(self, predictions) -> dict[str, Any]:
    try:
      shared = set(self._task.overlap())
    except (OSError, ValueError):  # evaluation does without training data
      return {}
    rest = [p for i, p in enumerate(predictions) if i not in shared]
    if not shared or not rest:
      return {}
    scores = metrics.score_all(self._metrics(), rest)
    return {'overlap': {'num_examples': len(shared), 'metrics': scores}}

  def _metrics(self) -> Sequence[metrics.Metric]:
    """The metrics of the task, or the usual ones for its kind."""
    if named := tuple(getattr(self._task, 'metrics', ())):
      return named
    if self._labels:
      return classify.usual_metrics(self._task)
    if self._task.kind == 'generation':
      return (metrics.mean_score(self._task.metric),)
    if self._task.kind == 'conversation':
      return (metrics.likelihood(),)
    if self._task.kind == PREFERENCE:
      return (
        metrics.mean_score('reward_accuracy'),
        metrics.reward_margin(),
        metrics.accuracy(),
      )
    return (
      metrics.accuracy(),
      metrics.accuracy_per_token(),
      metrics.accuracy_per_byte(),
    )

  def _completion_loss(self, base, lora) -> float:
    total, weight = 0.0, 0.0
    longest = LONGEST
    if self._has_table_of_positions:
      longest = min(longest, self._model.config.max_length)
    batches = self._task.eval_batches(
      self._model.tokenizer,
      length=self._length,
      longest=longest,
      batch_size=self._loss_batch_size,
      form=batch_form(self._model),
    )
    for number, batch in enumerate(self._progress(batches)):
      if self._has_table_of_positions:
        self._check_positions(int(np.max(batch['positions'])) + 1)
      losses = np.asarray(
        self._losses(base, lora, self._placement.put_rows(batch))
      )
      weights = batch['weights']
      counted = losses.astype(np.float64)[weights != 0]
      place = f'{self._task.name}, batch {number} of completions'
      require_finite(counted, 'the loss of a token', place)
      total += float(np.sum(counted * weights[weights != 0]))
      weight += float(np.sum(weights))
    return total / weight

  def _progress(self, batches: Iterable) -> Iterable:
    return progress.counted(batches, f'evaluating {self._task.name}')


def batch_form(model: Any) -> str:
  """The form of batches that a model needs; 'decoder' if it names none."""
  return getattr(model, 'batch_form', 'decoder')
