"""Learning rate schedules."""

import optax

from lora_opt.reading.values import integer


def warmup_cosine(
  peak_learning_rate: float,
  train_steps: int,
  *,
  warmup_fraction: float = 0.1,
  end_fraction: float = 0.0,
) -> optax.Schedule:
  """Linear warm-up, then cosine decay.

  Unlike a warm-up of a fixed number of steps it fits runs of any length.

  Args:
    peak_learning_rate: reached at the end of the warm-up.
    train_steps: length of the run; may be 0, as such a run uses no rate.
    warmup_fraction: fraction of the run spent warming up, at least one step.
    end_fraction: final learning rate, as a fraction of the peak.

  Returns:
    step -> learning rate.

  Raises:
    ValueError: `train_steps` is not a whole number >= 0, or a fraction is not
      in [0, 1).

  >>> rate = warmup_cosine(1.0, 100)
  >>> [round(float(rate(step)), 2) for step in (0, 5, 10, 55, 100)]
  [0.09, 0.55, 1.0, 0.5, 0.0]
  """
  _check(
    train_steps, warmup_fraction=warmup_fraction, end_fraction=end_fraction
  )
  warmup = _warmup_steps(train_steps, warmup_fraction)
  return optax.warmup_cosine_decay_schedule(
    # Not 0, so that the first step changes something.
    init_value=peak_learning_rate / (warmup + 1),
    peak_value=peak_learning_rate,
    warmup_steps=warmup,
    decay_steps=max(train_steps, warmup + 1),
    end_value=end_fraction * peak_learning_rate,
  )


def warmup_constant(
  peak_learning_rate: float,
  train_steps: int,
  *,
  warmup_fraction: float = 0.1,
) -> optax.Schedule:
  """Linear warm-up, then a rate that stays, for `lora_opt.averaged`.

  Args:
    peak_learning_rate: reached at the end of the warm-up.
    train_steps: length of the run; may be 0, as such a run uses no rate.
    warmup_fraction: fraction of the run spent warming up, at least one step.

  Returns:
    step -> learning rate.

  Raises:
    ValueError: `train_steps` is not a whole number >= 0, or the fraction is not
      in [0, 1).

  >>> rate = warmup_constant(1.0, 100)
  >>> [round(float(rate(step)), 2) for step in (0, 5, 10, 100)]
  [0.09, 0.55, 1.0, 1.0]
  """
  _check(train_steps, warmup_fraction=warmup_fraction)
  warmup = _warmup_steps(train_steps, warmup_fraction)
  return optax.linear_schedule(
    peak_learning_rate / (warmup + 1), peak_learning_rate, warmup
  )


def _check(train_steps: int, **fractions: float) -> None:
  integer(train_steps, 'train_steps (--gin.TRAIN_STEPS)', least=0)
  for name, share in fractions.items():
    if not 0 <= share < 1:
      raise ValueError(f'{name}={share} must be in [0, 1)')


def _warmup_steps(train_steps: int, fraction: float) -> int:
  return max(1, round(fraction * train_steps))
