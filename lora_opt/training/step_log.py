"""Logs the steps of a run to files and the screen; NaN becomes an error."""

import contextlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optax

from lora_opt.devices.together import is_first
from lora_opt.evaluation.metrics import headline
from lora_opt.training.metrics import MetricWriter, NoWriter, ProgressBar

# The metric for updates lost to rounding, and the fraction that is worth a
# warning. B starts at zero and loses none, so 0.5 means all updates of A.
LOST_UPDATES, MANY_LOST = 'lora/lost_updates_mean', 0.2
REMEDY = (
  'A lower learning rate, a longer warm-up or float32 is the usual remedy.'
)


class TrainingDivergedError(ValueError):
  """The loss or the gradient is no longer a finite number.

  Attributes:
    what: which number is not finite, in a few words.
    step: the step in which it was found.
  """

  def __init__(self, what: str, step: int, message: str):
    super().__init__(message)
    self.what, self.step = what, step


@contextlib.contextmanager
def open_step_log(
  folder: pathlib.Path,
  learning_rate: optax.ScalarOrSchedule | None,
  *,
  done: int,
  train_steps: int,
  tokens_per_batch: int | None,
  period: int,
  skip_patience: int = 0,
  tell: Callable[[], None] = lambda: None,
) -> Iterator['StepLog']:
  """Opens the log of a run from step `done` on; only process 0 writes any.

  Args:
    folder: MODEL_DIR.
    learning_rate, tokens_per_batch, period, skip_patience: see `StepLog`.
    done: finished steps; log entries of later steps are removed.
    train_steps: steps of the whole run.
    tell: see `MetricWriter`.
  """
  first = is_first()
  with (
    MetricWriter(folder, tell) if first else NoWriter() as writer,
    contextlib.nullcontext(sys.stderr)
    if first
    else pathlib.Path(os.devnull).open('w', encoding='utf-8') as stream,
    ProgressBar(train_steps, done, stream=stream) as progress,
  ):
    writer.rewind(done)
    yield StepLog(
      writer,
      progress,
      learning_rate,
      tokens_per_batch=tokens_per_batch,
      period=period,
      skip_patience=skip_patience,
    )


class StepLog:
  """Reads the metrics of each step while the next one is already running.

  Waiting for the metrics of the step just started would leave an accelerator
  idle. Those of the previous step are ready, or nearly so.
  """

  def __init__(
    self,
    writer: MetricWriter,
    progress: ProgressBar,
    learning_rate: optax.ScalarOrSchedule | None,
    *,
    tokens_per_batch: int | None,
    period: int = 1,
    skip_patience: int = 0,
  ):
    """Starts the clock.

    Args:
      writer: gets the scalars of every `period`-th step.
      progress: updated in every step.
      learning_rate: float or schedule, for the log only; None leaves it out.
      tokens_per_batch: positions in a batch, padding included; None if the
        examples are images, which are counted instead.
      period: steps between two lines.
      skip_patience: steps in a row that the optimizer may skip, according to
        the metric `skipped`; one more counts as divergence.
    """
    self._writer = writer
    self._progress = progress
    self._learning_rate = learning_rate
    self._tokens_per_batch = tokens_per_batch
    self._period = period
    self._skip_patience = skip_patience
    self._skipped_in_a_row = 0
    self._pending: tuple[int, Mapping[str, Any]] | None = None
    self._first = True
    self._warned = False
    self._last_time = time.monotonic()
    self._feeding = 0.0

  @contextlib.contextmanager
  def feeding(self) -> Iterator[None]:
    """Counts the time inside as spent on making and placing a batch.

    This is an upper bound of the cost of the data: a step may be running
    meanwhile.
    """
    start = time.monotonic()
    yield
    self._feeding += time.monotonic() - start

  def push(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of step `step` (from 1), and logs the step before it.

    Raises:
      TrainingDivergedError: the loss or gradient of the step before is not
        finite, or the optimizer skipped too many steps in a row.
    """
    self.flush()
    self._pending = step, metrics

  def flush(self) -> None:
    """Waits for the metrics of the pending step, and logs them.

    Raises:
      TrainingDivergedError: as in `push`.
    """
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    scalars = {name: float(value) for name, value in metrics.items()}
    now = time.monotonic()
    seconds, self._last_time = now - self._last_time, now
    feeding, self._feeding = self._feeding, 0.0
    self._check(step, scalars, bool(scalars.pop('skipped', False)))
    rate = self._learning_rate
    if rate is not None:
      # The update of step t used the learning rate at t - 1 finished steps.
      scalars['learning_rate'] = float(
        rate(step - 1) if callable(rate) else rate
      )
    if self._first:  # its time is mostly compilation
      self._first = False
      scalars['timing/first_step_seconds'] = seconds
    else:
      targets, tokens = scalars['target_tokens'], self._tokens_per_batch
      scalars |= {
        'timing/data_wait_fraction': feeding / seconds,
        'timing/steps_per_second': 1 / seconds,
      }
      if tokens is None:
        scalars['timing/images_per_second'] = targets / seconds
      else:
        scalars |= {
          'timing/tokens_per_second': tokens / seconds,
          'timing/target_tokens_per_second': targets / seconds,
        }
    self._progress.update(step, scalars)
    self._warn_of_rounding(step, scalars)
    if step % self._period == 0:
      self._writer.write(step, 'train', scalars)

  def put(self) -> None:
    """Uploads the log, if the run's folder is in a bucket."""
    self._writer.put()

  def _check(
    self, step: int, scalars: Mapping[str, float], skipped: bool
  ) -> None:
    """Raises unless the step is finite, or was skipped within the patience."""
    broken = [
      f'{name} is {scalars[name]}'
      for name in ('loss', 'grad_norm')
      if not math.isfinite(scalars[name])
    ]
    self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
    if not skipped and not broken:
      return
    what = broken[0] if broken else 'the update is not finite'
    if skipped and self._skipped_in_a_row <= self._skip_patience:
      self._progress.print(
        f'step {step} was skipped: {what}; {scalars["skipped_steps"]:.0f} '
        f'skipped so far, {self._skipped_in_a_row} in a row'
      )
      return
    message = (
      f'{what} at step {step}; training stopped and nothing of that step was '
      f'saved. {REMEDY}'
    )
    if skipped:
      message += (
        f' The optimizer skipped the step, {self._skipped_in_a_row} in a row; '
        f'skip_patience={self._skip_patience} allows no more '
        '(--gin.loop.train.skip_patience=N).'
      )
    raise TrainingDivergedError(what, step, message)

  def _warn_of_rounding(self, step: int, scalars: Mapping[str, float]) -> None:
    """Warns once that the adapter hardly changes for lack of precision."""
    lost = scalars.get(LOST_UPDATES, 0.0)
    if lost < MANY_LOST or self._warned:
      return
    self._warned = True
    self._progress.print(
      f'warning: {lost:.0%} of the update of step {step} were lost, since the '
      'factors hold too few digits (bfloat16?) for steps that small. Keep them '
      'in float32 (--gin.lora.LoraConfig.dtype=float32), or let the optimizer '
      'keep copies (lora_opt.float32_masters, see docs/libraries.md)'
    )

  def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
    """Logs an evaluation, and excludes its time from that of the next step."""
    scores = {name: m['score'] for name, m in result['metrics'].items()}
    self._writer.write(step, 'eval', {'loss': result['loss'], **scores})
    self._progress.print(f'step {step}: {headline(result, "eval loss")}')
    self._last_time = time.monotonic()
