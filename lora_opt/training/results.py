"""Writes the results of a finished run: adapter, facts, report."""

import datetime
import importlib.metadata
import pathlib
import resource
import sys
from collections.abc import Mapping
from typing import Any

import jax

from lora_opt import progress, writing
from lora_opt.buckets.outbox import output_folder
from lora_opt.evaluation import history
from lora_opt.evaluation.comparison import format_table
from lora_opt.run_folder import run_directory
from lora_opt.run_folder.run_directory import RunRecord
from lora_opt.training.train_state import count_parameters

_VERSIONS = ('lora_opt', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'grain')


def write_results(
  folder: pathlib.Path,
  model: Any,
  task: Any,
  lora: Any,
  *,
  record: RunRecord,
  evaluations: tuple[Mapping[str, Any], Mapping[str, Any]],
  steps: int,
  seconds: float,
) -> str:
  """Exports the adapter; writes run.json, the configuration and the report.

  Args:
    folder: MODEL_DIR.
    model, task: the model and task of the run.
    lora: the trained adapters, on the host.
    record: the command and configuration of the run.
    evaluations: the evaluations before and after training.
    steps: finished training steps.
    seconds: seconds since the (last) start of the run.

  Returns:
    The folder of the adapter.
  """
  adapter = folder / 'adapter'
  with (
    progress.waiting('writing the adapter'),
    output_folder(adapter) as local,
  ):
    model.export(local, lora)
  run_directory.write_json(
    folder / 'run.json',
    facts(record, model, task, lora)
    | _outcome(steps, seconds)
    | {
      'adapter': str(adapter),
      'data_wait_fraction': history.data_wait_fraction(folder),
      'skipped_steps': history.skipped_steps(folder),
    },
  )
  operative = record.operative_config_text()
  writing.write_text(folder / 'operative_config.gin', operative)
  with progress.waiting('drawing the report'):
    # Imported here, since matplotlib adds half a second to a start.
    from lora_opt.evaluation.report import write_report

    report = write_report(folder)
  print(f'\n{format_table(*evaluations)}\n')
  print(f'adapter: {adapter}\nreport:  {report}')
  return str(adapter)


def facts(
  record: RunRecord, model: Any, task: Any, lora: Any
) -> dict[str, Any]:
  """The facts of a run that are known from its start on, JSON-serialisable.

  Args:
    record, model, task: those of the run.
    lora: the adapters; only their size is used.
  """
  device = jax.devices()[0]
  return {
    'command': record.command,
    'model': model.name,
    'task': task.name,
    'optimizer': _optimizer(record.settings),
    'devices': f'{jax.device_count()} x {device.device_kind}',
    'versions': {name: importlib.metadata.version(name) for name in _VERSIONS},
    'trainable_parameters': count_parameters(lora),
    'frozen_parameters': count_parameters(model.base),
  }


def _optimizer(settings: Mapping[str, str]) -> str:
  recipe = settings.get('OPTIMIZER', '')
  whole = settings.get('WHOLE_OPTIMIZER', '')
  return f'{whole} around {recipe}' if whole.startswith('@') else recipe


def _outcome(steps: int, seconds: float) -> dict[str, Any]:
  """The start, duration, steps and peak memory of a finished run."""
  now = datetime.datetime.now(datetime.UTC)
  return {
    'started': (now - datetime.timedelta(seconds=seconds)).isoformat(
      timespec='seconds'
    ),
    'seconds': seconds,
    'steps': steps,
    # The kernel counts in KiB on Linux, in bytes on macOS.
    'peak_memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    * (1 if sys.platform == 'darwin' else 1024),
  }
