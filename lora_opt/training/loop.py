"""A whole run from start to end: evaluate, train, evaluate, export, report."""

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax

from lora_opt import progress, transforms
from lora_opt.buckets.paths import as_path, is_bucket
from lora_opt.devices import finite
from lora_opt.devices.partitioning import DATA_PARALLEL, Partitioner, put
from lora_opt.devices.together import is_first, meet, on_first
from lora_opt.evaluation import history
from lora_opt.evaluation.classify import named_for
from lora_opt.evaluation.evaluate import Evaluator, batch_form
from lora_opt.evaluation.mixture import make_evaluator
from lora_opt.reading import parts
from lora_opt.reading.values import integer
from lora_opt.run_folder import identity, run_directory
from lora_opt.run_folder.run_directory import RunRecord
from lora_opt.training import drawing, profile, run_lock, stopping
from lora_opt.training.checkpointing import Checkpoints, check_place
from lora_opt.training.evaluations import Evaluations
from lora_opt.training.lengths import row_length, tokens_per_batch
from lora_opt.training.processes import Agreement
from lora_opt.training.results import facts, write_results
from lora_opt.training.step import clip_by_global_norm, make_train_step
from lora_opt.training.step_log import TrainingDivergedError, open_step_log
from lora_opt.training.steps import run_steps
from lora_opt.training.trackers.following import following
from lora_opt.training.trackers.tracker import Tracker
from lora_opt.training.train_state import create_train_state
from lora_opt.training.untrained import Watch

_DIVERGED = 'diverged.json'


def train(
  model_dir: str | os.PathLike,
  model: Any,
  task: Any,
  optimizer: optax.GradientTransformation,
  *,
  train_steps: int,
  batch_size: int = 8,
  task_feature_lengths: Mapping[str, int] | None = None,
  learning_rate: optax.ScalarOrSchedule | None = None,
  clip_norm: float | None = None,
  objective: Any = None,
  microbatches: int = 1,
  loss_normalizing_factor: float | None = None,
  seed: int = 0,
  partitioner: Partitioner = DATA_PARALLEL,
  evaluator: Callable[..., Evaluator] = Evaluator,
  evaluate_before: bool = True,
  eval_period: int | None = None,
  checkpoint_period: int = 100,
  keep_checkpoints: int = 2,
  log_period: int = 1,
  data_workers: int = 0,
  diagnostics: bool = True,
  profile_steps: int | None = None,
  skip_patience: int = 0,
  initial_adapter: str | None = None,
  trackers: Sequence[Tracker] = (),
  record: RunRecord | None = None,
) -> pathlib.Path:
  """Fine-tunes the adapters of a model on a task, and reports the effect.

  Every process of a run must call this with the same arguments. If it is
  started again with the same `model_dir`, on any number of processes and
  devices, it resumes from the newest checkpoint. On the same processes and
  devices the final adapter is bit for bit that of an uninterrupted run.

  Args:
    model_dir: folder for checkpoints, metrics, evaluations, adapter, report;
      local, or in a bucket: gs://bucket/run, s3://bucket/run.
    model: a `lora_opt.models.CausalLM`, or an object with the same interface.
    task: a task of `lora_opt.data.tasks`, or an object with the same interface.
    optimizer: over the adapter parameters, learning rate included.
    train_steps: optimizer steps of the whole run; 0 evaluates, makes the class
      pictures a task needs, and exports the adapter training would start from.
    batch_size: rows of a batch, over all processes and microbatches.
    task_feature_lengths: {'targets': tokens per row}, default 256; short
      examples share a row. For an encoder-decoder also 'inputs', by default
      the same number. No effect on image models.
    learning_rate: the learning rate of `optimizer`, for the log only.
    clip_norm: global norm that the raw gradients are clipped to, None for no
      clipping. LoRA-RITE does its own clipping, in coordinates that do not
      depend on the factorisation; clipping before it breaks its invariance.
    objective: the loss to minimise, such as `objective.DPO()` on a
      `tasks.Preference`; None for the loss of the target tokens.
    microbatches: number of parts in which a batch is computed, to save memory.
    loss_normalizing_factor: divisor of the summed loss; None: target tokens,
      or pairs of answers.
    seed: seed of initialisation, data order and dropout.
    partitioner: how arrays are split over devices; pure data parallelism by
      default.
    evaluator: makes the evaluation from (model, task, placement).
    evaluate_before: also evaluate before the first step; the runs of a sweep
      need not repeat it.
    eval_period: steps between evaluations during training; None for none.
    checkpoint_period: steps between checkpoints; there is one at the end too.
    keep_checkpoints: how many checkpoints to keep.
    log_period: steps between two lines of metrics.
    data_workers: number of processes that prepare batches in advance; 0 makes
      each batch in this process when it is needed. The batches are the same.
    diagnostics: also log balance, condition, dead directions, stable rank and
      step size of the factors; costs about an optimizer step.
    profile_steps: trace so many steps, from the third on, into
      MODEL_DIR/profile, with a page that says where their time goes.
    skip_patience: how many steps in a row the optimizer may skip because a
      gradient or an update is not finite; more count as divergence. The
      optimizer must count its skips, as every recipe does.
    initial_adapter: folder of an exported adapter to start from.
    trackers: objects from `lora_opt.training.trackers` that follow the run. If
      one fails, the run goes on.
    record: command line and configuration, for the folder and the report.

  Returns:
    The folder of the exported adapter.

  Raises:
    OSError: `model_dir` cannot be written, or another process trains in it.
    ValueError: bad data or settings, weights that are not finite, or
      `model_dir` holds another run.
    TrainingDivergedError: loss or gradient stopped being finite; also recorded
      in diverged.json, which a sweep takes as the run's outcome.
    SystemExit: after SIGTERM or Ctrl-C, once the step is saved, with the code
      `stopping.EXIT`.
  """
  record = record or RunRecord()
  _check_numbers(
    train_steps=(train_steps, 0),
    batch_size=(batch_size, 1),
    microbatches=(microbatches, 1),
    eval_period=(eval_period, 1),
    checkpoint_period=(checkpoint_period, 1),
    keep_checkpoints=(keep_checkpoints, 1),
    log_period=(log_period, 1),
    data_workers=(data_workers, 0),
    skip_patience=(skip_patience, 0),
  )
  parts.check(model=model, task=task)
  parts.check_objective(objective, task)
  length = row_length(task_feature_lengths, model)
  started = time.monotonic()
  folder = as_path(model_dir)
  check_place(folder)
  _check_trackers(folder, trackers)
  on_first(functools.partial(run_directory.make, folder))
  with run_lock.hold(folder) as lock, contextlib.ExitStack() as around:
    on_first(functools.partial(run_directory.claim, folder, record))
    model = named_for(model, task)
    if hasattr(model, 'write_labels'):
      on_first(functools.partial(model.write_labels, folder))
    placement = partitioner.place(model)
    placement.check_batch(batch_size, microbatches)
    _check_task(task)
    if profile_steps:
      profile.check(profile_steps, train_steps)

    if clip_norm is not None:
      optimizer = optax.chain(clip_by_global_norm(clip_norm), optimizer)
    base = put(model.base, placement.base)
    lora = (
      model.load_adapter(initial_adapter)
      if initial_adapter
      else model.init(jax.random.key(seed))
    )
    lora = put(lora, placement.trainable)
    state = create_train_state(lora, optimizer, placement)
    finite.check({'adapter': state.lora, 'optimizer state': state.opt_state})
    if transforms.keeps_average(state.opt_state) and is_first():
      print(
        'The average of the adapters is evaluated and exported.', flush=True
      )
    evaluate = make_evaluator(evaluator, model, task, placement)
    task = drawing.with_class_pictures(folder, model, task, evaluate, base)
    with progress.waiting('preparing the data'):
      data = task.train_batches(
        model.tokenizer,
        length=length,
        batch_size=batch_size,
        seed=seed,
        form=batch_form(model),
        rows=placement.process_rows(batch_size),
        workers=data_workers,
      )
    train_step = make_train_step(
      model,
      optimizer,
      placement,
      state,
      objective=objective,
      seed=seed,
      microbatches=microbatches,
      loss_normalizing_factor=loss_normalizing_factor,
      diagnostics_period=log_period if diagnostics else None,
    )
    if profile_steps:
      train_step = profile.traced(train_step, folder / 'profile', profile_steps)
    on_first(
      functools.partial(
        run_directory.describe,
        folder,
        task.facts() | {'batches': data.summary},
        {
          'frozen base': base,
          'adapters': state.lora,
          'optimizer': state.opt_state,
        },
      )
    )
    with progress.waiting('noting what weights and data are used'):
      batches = iter(data)
      made = identity.of_run(
        model, base, task, batches, lora if initial_adapter else None
      )
    on_first(functools.partial(identity.check, folder, record.settings, made))
    told = around.enter_context(
      following(
        folder,
        trackers if is_first() else (),
        facts(record, model, task, state.lora) | dict(record.settings),
      )
    )
    evaluations = Evaluations(folder, evaluate, base, identity.made_of(made))
    before = evaluations.once('before', state) if evaluate_before else {}
    with (
      stopping.stops() as stops,
      stops.later(),
      Agreement(stops) as agreement,
      Checkpoints(folder, keep_checkpoints) as checkpoints,
      contextlib.closing(batches),
    ):
      state = checkpoints.restore(state, batches)
      if done := int(state.step):
        print(f'Going on from step {done}.', flush=True)
      with (
        open_step_log(
          folder,
          learning_rate,
          done=done,
          train_steps=train_steps,
          tokens_per_batch=tokens_per_batch(model, length, batch_size),
          period=log_period,
          skip_patience=skip_patience,
          tell=told.wake,
        ) as log,
        _noted(folder / _DIVERGED),
      ):
        drawn = () if initial_adapter else getattr(model, 'drawn', ())
        watch = Watch(state.lora, placement, drawn)
        state = run_steps(
          lambda *inputs: watch(train_step(*inputs)),
          base,
          state,
          batches,
          placement,
          log=log,
          checkpoints=checkpoints,
          lock=lock,
          agreement=agreement,
          batch_size=batch_size,
          train_steps=train_steps,
          checkpoint_period=checkpoint_period,
          evaluate=evaluations.now,
          eval_period=eval_period,
          was_evaluated=on_first(
            functools.partial(_was_evaluated, folder, done)
          ),
        )
        watch.finish()
    if state.step < train_steps:
      by = stops.asked or 'SIGTERM'
      print(f'Stopped by {by} after step {state.step}; run again to go on.')
      raise stopping.Stopped(together=True)
    stops.heed()
    after = evaluations.once('after', state)

    results = functools.partial(
      write_results,
      folder,
      model,
      task,
      placement.gather(state.evaluated),
      record=record,
      evaluations=(before, after),
      steps=train_steps,
      seconds=time.monotonic() - started,
    )
    adapter = as_path(on_first(results))
    told.finish()
    meet()  # a process that exits before the first one would take it for lost
    return adapter


def _check_trackers(folder: pathlib.Path, trackers: Sequence[Tracker]) -> None:
  if trackers and is_bucket(folder):
    raise ValueError(
      f'MODEL_DIR={folder}: TRACKERS follow the files of a local folder; leave '
      'them out, or take one. The events of TensorBoard are in the bucket'
    )


def _check_numbers(**settings: tuple[int | None, int]) -> None:
  """Raises ValueError unless each is a whole number >= its minimum, or None."""
  for name, (value, least) in settings.items():
    if value is not None:
      integer(value, f'{name} (--gin.{name.upper()})', least=least)


def _check_task(task: Any) -> None:
  with progress.waiting('checking the data'):
    task.validate()
    overlap = task.overlap()
  if overlap:
    print(
      f'{len(overlap)} evaluation questions also stand in the training data '
      '(leave_out_overlap=True on a task leaves them out)'
    )


@contextlib.contextmanager
def _noted(path: pathlib.Path) -> Iterator[None]:
  """Writes the error to a file if the training inside diverges."""
  on_first(functools.partial(path.unlink, missing_ok=True))
  try:
    yield
  except TrainingDivergedError as error:
    note = {'error': str(error)}
    on_first(functools.partial(run_directory.write_json, path, note))
    raise


def _was_evaluated(folder: pathlib.Path, step: int) -> bool:
  rows = history.read_metrics(folder)
  return any((r['split'], r['step']) == ('eval', step) for r in rows)
