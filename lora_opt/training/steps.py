"""The training steps of a run: batch, update, log, save, evaluate, stop."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lora_opt.devices import finite
from lora_opt.devices.partitioning import Placement
from lora_opt.training import compile_time, stopping
from lora_opt.training.checkpointing import Checkpoints
from lora_opt.training.processes import Agreement
from lora_opt.training.run_lock import RunLock
from lora_opt.training.step_log import StepLog, TrainingDivergedError
from lora_opt.training.train_state import TrainState


def run_steps(
  train_step: Callable[..., tuple[TrainState, dict]],
  base: Any,
  state: TrainState,
  batches: Iterator[Mapping[str, np.ndarray]],
  placement: Placement,
  *,
  log: StepLog,
  checkpoints: Checkpoints,
  lock: RunLock,
  agreement: Agreement,
  batch_size: int,
  train_steps: int,
  checkpoint_period: int,
  evaluate: Callable[[TrainState], dict[str, Any]],
  eval_period: int | None,
  was_evaluated: bool,
) -> TrainState:
  """Runs the steps from `state` on, up to `train_steps` or until a signal.

  Args:
    train_step: from `step.make_train_step`.
    base: the frozen weights.
    state: the state from which the run starts or resumes.
    batches: the data iterator, at its position after the step of `state`.
    placement: the placement of the model.
    log, checkpoints, lock, agreement: those of the run, open.
    batch_size, train_steps, checkpoint_period, eval_period: see `loop.train`.
    evaluate: evaluates a state.
    was_evaluated: whether `state` has been evaluated, if that was due.

  Returns:
    The last state, which is saved.

  Raises:
    OSError: this run has lost the lock of MODEL_DIR, or cannot write there.
    TrainingDivergedError: a number is not finite; the message says which was
      the first.
  """
  start = int(state.step)
  saved = start
  inputs: dict[int, Any] = {}  # the batches of the two newest steps

  def evaluate_if_due(step):
    if eval_period and step % eval_period == 0 and 0 < step < train_steps:
      log.flush()
      with agreement.evaluating():
        log.evaluation(step, evaluate(state))

  def save(step):
    nonlocal saved
    log.flush()  # before the save: a state that is not finite is not saved
    lock.check()
    log.put()  # so that the log has all steps before the checkpoint
    if step > saved:
      checkpoints.save(state, batches)
      saved = step

  step = start
  with _explained(base, inputs, first=start + 1):
    try:
      if not was_evaluated:  # the run stopped between save and evaluation
        evaluate_if_due(start)
      for step in range(start + 1, train_steps + 1):
        with log.feeding():
          # The data workers, which start here, must not receive the signals
          # that stop this process.
          first = step == start + 1
          with stopping.unheard() if first else contextlib.nullcontext():
            rows = next(batches)
          batch = placement.put_batch(rows, batch_size)
        inputs[step] = batch
        inputs.pop(step - 2, None)
        with (
          compile_time.compiling('the training step', state, base, batch)
          if first
          else contextlib.nullcontext()
        ):
          state, metrics = train_step(state, base, batch)
        log.push(step, metrics)
        lock.check()
        stop = agreement.requested(step)
        if stop or step == train_steps or step % checkpoint_period == 0:
          save(step)
        if stop:
          break
        evaluate_if_due(step)
    except stopping.Stopped:  # raised in the middle of an evaluation
      save(step)
  return state


@contextlib.contextmanager
def _explained(
  base: Any, inputs: Mapping[int, Any], first: int
) -> Iterator[None]:
  """If a step diverges, says which of its inputs are not finite.

  Args:
    base: the frozen weights.
    inputs: the newest batches, by step.
    first: the first step since the start, whose initial state was finite.
  """
  try:
    yield
  except TrainingDivergedError as error:
    trees = {'base weights': base}
    if error.step in inputs:
      trees[f'batch of step {error.step}'] = inputs[error.step]
    if found := finite.broken(trees):
      reason = found
    elif error.step == first:
      reason = (
        'base weights, adapter, optimizer state and batch, with which it '
        'began, are finite, so it is the computation that overflows; float32 '
        'is the usual remedy'
      )
    else:
      raise
    message = f'{error.what} at step {error.step}: {reason}'
    raise TrainingDivergedError(error.what, error.step, message) from error
