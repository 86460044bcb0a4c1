"""Evaluates a text-to-image model: its loss at fixed noise, and pictures."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from lora_opt import progress
from lora_opt.devices.partitioning import Placement
from lora_opt.evaluation import metrics
from lora_opt.evaluation.finite import named, require_finite
from lora_opt.reading import values

METRIC = 'validation_loss'


class Strip(NamedTuple):
  """Pictures of one text, each drawn from different noise."""

  prompt: str
  pictures: np.ndarray  # (pictures, height, width, 3) uint8


class PictureEvaluator:
  """Computes the validation loss of a text-to-image model, and draws pictures.

  Noise is added to every evaluated picture `draws` times, at timesteps spread
  evenly over the whole range, and the loss is the mean over all of these.
  Timesteps and noise depend on `seed` alone: they are the same before and after
  training and for every method, so that only the model differs. The interval is
  a bootstrap over pictures and draws. It shows what other noise would change
  and, if there are many pictures, what other pictures would.
  """

  def __init__(
    self,
    model: Any,
    task: Any,
    placement: Placement,
    *,
    batch_size: int = 8,
    draws: int = 16,
    samples: int = 4,
    steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str = '',
    scheduler: str | None = None,
    seed: int = 0,
  ):
    """Prepares the compiled functions; nothing runs yet.

    Args:
      model: a `lora_opt.models.TextToImage`, or a model with the same
        interface.
      task: a `lora_opt.data.tasks.SubjectGeneration`, or a task with the same
        interface.
      placement: from `lora_opt.devices.partitioning.Partitioner.place`.
      batch_size: pictures in a batch, rounded up so that the devices share
        them evenly.
      draws: how often noise is added to each evaluated picture.
      samples: number of pictures drawn for each of the task's prompts; 0 for
        none.
      steps: number of steps of the sampler.
      guidance_scale: how strongly pictures are steered away from
        `negative_prompt`.
      negative_prompt: what pictures should not show.
      scheduler: the sampler: 'ddim', 'euler' or 'dpm_solver'; None for the
        model's own.
      seed: seed of all noise.

    Raises:
      ValueError: the model does not draw pictures, the task has none, or a
        setting has an invalid value.
    """
    form = getattr(model, 'batch_form', 'decoder')
    if form != 'text_to_image' or not hasattr(task, 'noise_batches'):
      raise ValueError(
        f'PictureEvaluator is for text-to-image models and tasks such as '
        f'SubjectGeneration, not for {model.name} on {task.name!r}: '
        'set loop.train.evaluator to @evaluate.Evaluator'
      )
    for name, value, least in (
      ('batch_size', batch_size, 1),
      ('draws', draws, 1),
      ('samples', samples, 0),
      ('steps', steps, 1),
      ('seed', seed, 0),
    ):
      values.integer(value, f'PictureEvaluator: {name}', least, 2**31 - 1)
    values.number(guidance_scale, 'PictureEvaluator: guidance_scale', 0)
    values.text(negative_prompt, 'PictureEvaluator: negative_prompt')
    sampler = model.sampler(scheduler)
    sampler.steps(model.config.noise, steps)
    shards = placement.row_shards
    self._model, self._task, self._placement = model, task, placement
    self._batch_size = -(-batch_size // shards) * shards
    self._draws, self._samples, self._seed = draws, samples, seed
    size = None if task.size is None else (task.size, task.size)
    self._start_noise = functools.partial(model.start_noise, size=size)
    self._start_noise(0, 1)  # raises an error if the size is impossible
    if samples:
      self.check_captions([*task.drawn_prompts(), negative_prompt])
    self._negative = negative_prompt
    self.drawn_by = {
      'sampler': repr(sampler),
      'steps': str(steps),
      'guidance scale': str(guidance_scale),
      'negative prompt': negative_prompt,
      'seed': str(seed),
      'size': str(size or model.image_size),
      'pictures at once': str(self._batch_size),
    }
    # Results are replicated on all devices, so that every process sees them.
    self._losses = placement.jit(
      model.token_losses, out_shardings=placement.whole
    )

    def sample(base, lora, rows):
      return model.sample(
        base,
        lora,
        rows['tokens'],
        rows['negative_tokens'],
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=sampler,
        size=size,
        noise=rows['noise'],
      )

    self._sample = placement.jit(sample, out_shardings=placement.whole)

  def __call__(self, base: Any, lora: Any, step: int = 0) -> dict[str, Any]:
    """Evaluates adapters on the evaluation split.

    Args:
      base: the frozen parameters.
      lora: the adapters.
      step: number of finished training steps, which is recorded.

    Returns:
      What `lora_opt.evaluation.evaluate.Evaluator` returns, with
      `lower_is_better`. Each prediction is one picture at one timestep, with
      prompt (its caption), reference (its file), timestep, and score (the
      loss).
    """
    examples = self._task.examples('eval')
    losses, times = self._losses_at_fixed_noise(base, lora, len(examples))
    predictions = [
      {
        'prompt': example.prompt,
        'reference': PurePath(example.image.path).name,
        'timestep': int(times[index, draw]),
        'score': float(losses[index, draw]),
      }
      for index, example in enumerate(examples)
      for draw in range(self._draws)
    ]
    headline = metrics.mean_score(METRIC, lower_is_better=True)
    scores = metrics.score_all([headline], predictions)
    return {
      'step': int(step),
      'task': self._task.name,
      'metric': METRIC,
      **scores[METRIC],
      'metrics': scores,
      'loss': scores[METRIC]['score'],
      'num_examples': len(predictions),
      'halves': [
        {METRIC: float(np.mean([p['score'] for p in predictions[start::2]]))}
        for start in range(min(2, len(predictions)))
      ],
      'predictions': predictions,
    }

  def pictures(self, base: Any, lora: Any) -> list[Strip]:
    """Draws `samples` pictures of each prompt, from the same noise each time.

    Args:
      base: the frozen parameters.
      lora: the adapters, None for the bare model.
    """
    if not self._samples:
      return []
    prompts = self._task.drawn_prompts()
    noise = np.asarray(self._start_noise(self._seed, self._samples))
    drawn = self._draw(
      base,
      lora,
      [prompt for prompt in prompts for _ in noise],
      np.concatenate([noise] * len(prompts)),
    )
    strips = drawn.reshape(len(prompts), self._samples, *drawn.shape[1:])
    return [Strip(*pair) for pair in zip(prompts, strips, strict=True)]

  def check_captions(self, texts: Sequence[str]) -> None:
    """Raises ValueError for a text that is too long, if the task forbids it."""
    model = self._model
    self._task.check_captions(texts, model.tokenizer, model.row_length[-1])

  @property
  def class_batch_size(self) -> int:
    """How many pictures of the class are drawn at once."""
    return self._batch_size

  def class_pictures(self, base: Any, prompt: str, first: int) -> np.ndarray:
    """Draws pictures of the class with the bare model.

    Args:
      base: the frozen parameters.
      prompt: what they should show.
      first: the number of the first picture, which determines the noise.

    Returns:
      (class_batch_size, height, width, 3) uint8.
    """
    # The seed differs from that of `pictures`.
    noise = self._start_noise(self._seed + 1 + first, self._batch_size)
    return self._draw(base, None, [prompt] * self._batch_size, noise)

  def _draw(self, base, lora, prompts: Sequence[str], noise) -> np.ndarray:
    """Draws a picture of each text, (texts, height, width, 3) uint8."""
    tokens = self._model.encode_texts(prompts)
    away = self._model.encode_texts([self._negative])
    found, size = [], self._batch_size
    for start in self._progress(range(0, len(prompts), size), 'drawing'):
      rows = [min(i, len(prompts) - 1) for i in range(start, start + size)]
      arrays = {
        'tokens': tokens[rows],
        'negative_tokens': np.broadcast_to(away, (size, away.shape[1])),
        'noise': np.asarray(noise)[rows],
      }
      pictures = self._sample(base, lora, self._placement.put_rows(arrays))
      found.append(np.asarray(pictures, np.float32))
    pictures = np.concatenate(found)[: len(prompts)]
    for picture, prompt in zip(pictures, prompts, strict=True):
      place = named(self._task.name, prompt)
      require_finite(picture, 'a pixel of a picture', place)
    return np.uint8(np.round(255 * pictures))

  def _losses_at_fixed_noise(self, base, lora, count: int):
    """Loss and timestep of each picture and draw, both (pictures, draws)."""
    losses = np.zeros((count, self._draws))
    times = np.zeros((count, self._draws), int)
    done = np.zeros(count, int)
    batches = self._task.noise_batches(
      self._model.tokenizer,
      length=self._model.row_length,
      draws=self._draws,
      timesteps=self._model.config.noise.timesteps,
      batch_size=self._batch_size,
      seed=self._seed,
    )
    for batch in self._progress(batches, 'evaluating'):
      arrays = self._placement.put_rows(batch.arrays)
      found = np.asarray(self._losses(base, lora, arrays))[:, 0]
      for row, index in enumerate(batch.example):
        if index < 0:
          continue
        place = f'{self._task.name}, picture {index}'
        require_finite(found[row], 'the loss of a picture', place)
        losses[index, done[index]] = found[row]
        times[index, done[index]] = batch.arrays['timesteps'][row]
        done[index] += 1
    return losses, times

  def _progress(self, batches: Iterable, what: str) -> Iterable:
    return progress.counted(batches, f'{what} {self._task.name}')
