"""Run mode plan: what a training step needs on hardware not at hand."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lora_opt import writing
from lora_opt.buckets.paths import as_path
from lora_opt.devices.partitioning import DATA_PARALLEL, Partitioner
from lora_opt.planning import report
from lora_opt.planning.chips import Topology, read_topology
from lora_opt.planning.outcome import Plan
from lora_opt.planning.program import (
  DoesNotFitError,
  Job,
  Program,
  compile_step,
  describe,
)
from lora_opt.planning.search import Tried, smallest_mesh
from lora_opt.planning.targets import find_target, platform_of
from lora_opt.planning.timing import (
  ASSUMED,
  Utilisation,
  step_time,
)
from lora_opt.reading import parts
from lora_opt.reading.values import integer
from lora_opt.run_folder.run_directory import RunRecord, write_json
from lora_opt.training.lengths import row_length
from lora_opt.training.objective import batch_form
from lora_opt.training.step import clip_by_global_norm
from lora_opt.training.train_state import count_parameters


def simulate(topology: str | Topology) -> None:
  """Gives this process as many CPU devices as planning needs.

  It needs one if the topology's own compiler is installed, and otherwise as
  many as the topology has. Nothing is ever computed on them. Call this before
  any other use of JAX.

  Args:
    topology: A `Topology` or its name, see
      `lora_opt.planning.chips.read_topology`.

  Raises:
    ValueError: The topology is unknown.
  """
  jax.config.update('jax_platforms', 'cpu')
  there = read_topology(topology)
  count = there.devices if platform_of(there) == 'cpu' else 1
  jax.config.update('jax_num_cpu_devices', count)


def plan(
  model_dir: str | os.PathLike,
  model: Any,
  optimizer: optax.GradientTransformation,
  empty_batch: Callable[..., Mapping[str, Any]],
  *,
  topology: str | Topology,
  batch_size: int = 8,
  task_feature_lengths: Mapping[str, int] | None = None,
  clip_norm: float | None = None,
  microbatches: int = 1,
  loss_normalizing_factor: float | None = None,
  objective: Any = None,
  partitioner: Partitioner = DATA_PARALLEL,
  log_period: int = 1,
  diagnostics: bool = True,
  reserve: float = 0.1,
  utilisation: Utilisation = ASSUMED,
  search: bool = True,
  record: RunRecord | None = None,
) -> pathlib.Path:
  """Compiles a run's training step for a topology, and reports what it needs.

  Neither data nor weights are needed, only shapes. Arguments that are also
  those of `lora_opt.training.loop.train` mean the same.

  Args:
    model_dir: plan.json and plan.md are written into it.
    model: the model to train; shapes suffice for its weights.
    optimizer: the optimizer of the adapter parameters.
    empty_batch: (form, length=, batch_size=) -> the arrays of a batch, such as
      `lora_opt.data.forms.empty_batch`.
    topology: the devices, see `lora_opt.planning.chips.read_topology`.
    batch_size: see `train`.
    task_feature_lengths: see `train`.
    clip_norm: see `train`.
    microbatches: see `train`.
    loss_normalizing_factor, objective: see `train`.
    partitioner: see `train`.
    log_period, diagnostics: see `train`; the step includes the diagnostics.
    reserve: share of a device's memory that stays free for what a plan does not
      know: the runtime, fragmentation, a different compiler.
    utilisation: share of each published peak that is assumed to be reached.
    search: also look for the smallest mesh that fits, which compiles the step
      for one mesh after another.
    record: holds the command line.

  Returns:
    MODEL_DIR/plan.md, which is also printed.

  Raises:
    DoesNotFitError: the compiler reports that a step needs more memory than a
      device has.
    ValueError: the topology is unknown, or the job does not divide evenly among
      its devices.
  """
  devices = read_topology(topology)
  job = make_job(
    model,
    optimizer,
    empty_batch,
    batch_size=batch_size,
    task_feature_lengths=task_feature_lengths,
    clip_norm=clip_norm,
    microbatches=microbatches,
    loss_normalizing_factor=loss_normalizing_factor,
    objective=objective,
    log_period=log_period,
    diagnostics=diagnostics,
  )
  found = make_plan(
    job,
    devices,
    partitioner,
    reserve=reserve,
    utilisation=utilisation,
    search=search,
    command=record.command if record else '',
  )
  text = report.as_text(found, utilisation)
  folder = as_path(model_dir)
  write_json(folder / 'plan.json', report.as_json(found))
  writing.write_text(folder / 'plan.md', text)
  print(text)
  return folder / 'plan.md'


def make_job(
  model: Any,
  optimizer: optax.GradientTransformation,
  empty_batch: Callable[..., Mapping[str, Any]],
  *,
  batch_size: int,
  task_feature_lengths: Mapping[str, int] | None,
  clip_norm: float | None,
  microbatches: int,
  loss_normalizing_factor: float | None,
  log_period: int,
  diagnostics: bool,
  objective: Any = None,
  seed: int = 0,
) -> Job:
  """Describes what a run trains; for the arguments see `plan` and `train`.

  Raises:
    ValueError: A number is not an integer or too small, or `model` is not a
      model.
  """
  parts.check(model=model)
  for name, value in (
    ('batch_size', batch_size),
    ('microbatches', microbatches),
    ('log_period', log_period),
  ):
    integer(value, f'{name} (--gin.{name.upper()})', least=1)
  form = batch_form(objective, getattr(model, 'batch_form', 'decoder'))
  length = row_length(task_feature_lengths, model)
  if clip_norm is not None:
    optimizer = optax.chain(clip_by_global_norm(clip_norm), optimizer)
  settings = {
    'objective': objective,
    'seed': seed,
    'microbatches': microbatches,
    'loss_normalizing_factor': loss_normalizing_factor,
    'diagnostics_period': log_period if diagnostics else None,
  }
  batch = empty_batch(form, length=length, batch_size=batch_size)
  return Job(model, optimizer, batch, settings)


def make_plan(
  job: Job,
  topology: Topology,
  partitioner: Partitioner,
  *,
  reserve: float = 0.1,
  utilisation: Utilisation = ASSUMED,
  search: bool = True,
  command: str = '',
) -> Plan:
  """Makes the plan that `plan` writes to files; see there."""
  chip = topology.chip
  usable = chip.memory * (1 - reserve)
  # This machine's own compiler converts bfloat16, so a plan for it does too.
  native = chip.name != 'cpu'
  target = find_target(topology)
  shapes = describe(job, partitioner, target.devices)
  mesh = shapes.placement.mesh.shape

  def searched(program: Program | None) -> tuple[Tried, ...]:
    found = smallest_mesh(
      job,
      topology,
      usable,
      rules=partitioner.rules,
      native_bfloat16=native,
      known={tuple(mesh.values()): program},
    )
    return tuple(found) if search else ()

  try:
    program = compile_step(job, shapes, target, native)
  except DoesNotFitError as error:
    *_, last = (None, *searched(None))
    raise DoesNotFitError(f'{error}.{_instead(last, usable)}') from error
  return Plan(
    command=command,
    model=job.model.name,
    parameters=(
      count_parameters(job.model.base),
      count_parameters(shapes.state.lora),
    ),
    topology=topology,
    target=target,
    mesh=dict(mesh),
    batch={name: tuple(x.shape) for name, x in shapes.batch.items()},
    **_work(shapes.batch),
    usable=usable,
    program=program,
    time=step_time(program.costs, chip, utilisation),
    tried=searched(program),
  )


def _work(batch: Mapping[str, Any]) -> dict[str, Any]:
  """The size of a batch, and its unit."""
  texts = [x.size for name, x in batch.items() if name.endswith('tokens')]
  if texts and 'images' not in batch:
    return {'tokens': sum(texts), 'unit': 'tokens'}
  return {'tokens': len(batch['weights']), 'unit': 'images'}


def _instead(last: Tried | None, usable: float) -> str:
  """A sentence about the last mesh of a search; '' if it does not fit."""
  if last is None or last.program is None or last.program.total > usable:
    return ''
  return (
    f'\nOn {last.devices} of these devices it fits with '
    f'--gin.FSDP={last.fsdp} --gin.TENSOR={last.tensor}'
  )
