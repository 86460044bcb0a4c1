"""Run mode compile: compiles the training step before its hardware is at hand.

The result is an entry of JAX's own compilation cache, under the key that JAX
computes for the same program on the hardware. This works for TPUs and for this
machine, where both sides compute the key from the same inputs. It does not work
for GPUs, see `_check`.
"""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax
from jax.experimental.compilation_cache import compilation_cache

from lora_opt import writing
from lora_opt.buckets.paths import is_bucket
from lora_opt.devices.partitioning import DATA_PARALLEL, Partitioner
from lora_opt.planning.chips import Topology, read_topology
from lora_opt.planning.plan import make_job
from lora_opt.planning.program import Job, describe, refusal
from lora_opt.planning.targets import (
  EXTRAS,
  Target,
  compiling_for,
  find_target,
)
from lora_opt.run_folder.run_directory import RunRecord, write_json
from lora_opt.training.step import make_train_step

# The folder of compiled programs in MODEL_DIR, and the file in it that records
# what they were compiled for.
FOLDER = 'compiled'
NOTE = 'ahead.json'
# By default, JAX also makes XLA keep its GPU autotuning results in a folder
# inside the cache, and the path of that folder becomes part of every cache key.
_PORTABLE = {'jax_persistent_cache_enable_xla_caches': 'none'}


def compile_ahead(
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
  seed: int = 0,
  partitioner: Partitioner = DATA_PARALLEL,
  log_period: int = 1,
  diagnostics: bool = True,
  record: RunRecord | None = None,
) -> pathlib.Path:
  """Compiles the training step of a later run, for a given topology.

  Neither data nor weights nor devices are needed.

  Args:
    model_dir: the folder `compiled` is written into it.
    model: the model to train; shapes suffice for its weights.
    optimizer: the optimizer of the adapter parameters.
    empty_batch: see `lora_opt.planning.plan.plan`.
    topology: the devices, see `lora_opt.planning.chips.read_topology`.
    batch_size, task_feature_lengths, clip_norm, microbatches: see
      `lora_opt.training.loop.train`. Like the arguments below, they are part
      of the program.
    loss_normalizing_factor, objective, seed, partitioner: see `train`.
    log_period, diagnostics: see `train`.
    record: holds the command line for `ahead.json`.

  Returns:
    MODEL_DIR/compiled, a JAX compilation cache.

  Raises:
    DoesNotFitError: the compiler reports that a step needs more memory than a
      device has.
    ValueError: a program for this topology cannot be compiled ahead of time,
      or the job does not divide evenly among its devices.
  """
  if is_bucket(model_dir):
    raise ValueError(
      f'MODEL_DIR={model_dir}: run_mode=compile fills a compilation cache, '
      'which is a local folder; copy it to the bucket afterwards'
    )
  there = read_topology(topology)
  target = find_target(there)
  _check(there, target)
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
    seed=seed,
    log_period=log_period,
    diagnostics=diagnostics,
  )
  folder = pathlib.Path(model_dir, FOLDER)
  start = time.monotonic()
  # Compile into an empty cache: compile-only clients cannot read entries.
  with tempfile.TemporaryDirectory() as new:
    _compile_into(new, job, partitioner, target)
    programs = list(pathlib.Path(new).glob('*-cache'))
    for path in programs:
      writing.write_bytes(folder / path.name, path.read_bytes())
  if not programs:
    raise ValueError(
      f'JAX {jax.__version__} wrote no program for {there.name} to its '
      'compilation cache: is jax_enable_compilation_cache off?'
    )
  seconds = time.monotonic() - start
  command = record.command if record else ''
  note = {'topology': there.name, 'compiler': target.compiler}
  write_json(folder / NOTE, note | {'command': command})
  print(_said(there, target, folder, seconds))
  return folder


def heed(folder: str | None) -> None:
  """Lets JAX find the programs of `compile_ahead`, wherever the folder is.

  Args:
    folder: The compilation cache in use, or None.
  """
  if folder and pathlib.Path(folder, NOTE).exists():
    for name, value in _PORTABLE.items():
      jax.config.update(name, value)


def _check(topology: Topology, target: Target) -> None:
  """Raises ValueError if JAX on the hardware would miss a program made here."""
  name = topology.name
  if target.platform == 'gpu':
    raise ValueError(
      f'topology {name}: programs for GPUs cannot be made ahead of time. JAX '
      'names an entry of its cache after the version of the client; that of a '
      'client that only compiles is the name of the chip, that of a GPU which '
      'is there the version of CUDA, so that no entry would be found. Also, '
      'XLA chooses kernels by trying them on the GPU. Let the first run fill '
      '--compilation_cache_dir instead'
    )
  if not target.real and topology.chip.name != 'cpu':
    extra = EXTRAS.get(topology.chip.platform)
    fix = (
      f'pip install "lora_opt[{extra}]" -c constraints.txt'
      if extra
      else 'nobody publishes it'
    )
    raise ValueError(
      f'topology {name}: the compiler of {topology.chip.name} is not here: '
      f'{fix}'
    )


def _compile_into(
  cache: str, job: Job, partitioner: Partitioner, target: Target
) -> None:
  shapes = describe(job, partitioner, target.devices)
  step = make_train_step(
    job.model, job.optimizer, shapes.placement, shapes.state, **job.settings
  )
  with _cached_in(cache), compiling_for(target):
    lowered = step.lower(shapes.state, shapes.base, shapes.batch)
    try:
      lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      raise refusal(error, shapes) from error


@contextlib.contextmanager
def _cached_in(folder: str) -> Iterator[None]:
  """Makes JAX cache every program in this folder, within the context."""
  wanted = {
    'jax_compilation_cache_dir': folder,
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': 0,
    # A failure to write an entry must not go unnoticed.
    'jax_raise_persistent_cache_errors': True,
    **_PORTABLE,
  }
  before = {name: getattr(jax.config, name) for name in wanted}
  for name, value in wanted.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # it reads its settings only once
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def _said(
  topology: Topology, target: Target, folder: pathlib.Path, seconds: float
) -> str:
  size = sum(path.stat().st_size for path in folder.glob('*-cache'))
  text = (
    f'compiled for {topology.name} by {target.compiler} in {seconds:,.0f} s: '
    f'{folder}, {size / 1e6:,.1f} MB.\n'
    'Copy that folder to every machine of the run, and start the same command '
    'there with\n'
    '  --run_mode=train --compilation_cache_dir=FOLDER\n'
    'JAX finds the program if all of this is the same: this command otherwise, '
    'the code,\nthe versions of the packages, XLA_FLAGS and LIBTPU_INIT_ARGS. '
    'If not, it compiles.'
  )
  if target.platform == 'tpu':
    text += (
      '\nNo TPU was at hand when this was written: that one takes the program '
      'is untried.'
    )
  return text
