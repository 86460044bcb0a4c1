"""Orbax checkpoints: step, adapters, optimizer state, position in the data.

A checkpoint does not depend on the machine that wrote it. It holds whole arrays
by name, and one position in the data for all processes, so it can be restored
onto any number of processes and devices. It includes checksums, so that damage
is found before training continues from it.
"""

import functools
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import grain
import jax
import orbax.checkpoint as ocp

from lora_opt.buckets.paths import is_bucket
from lora_opt.devices.checksums import checksums
from lora_opt.devices.finite import by_path, not_finite
from lora_opt.devices.together import on_first
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json
from lora_opt.run_folder import run_directory
from lora_opt.run_folder.checkpoint_files import (
  ITEMS,
  PREFIX,
  damage,
  facts_checksum,
  is_finished,
)
from lora_opt.training.checkpoint_store import CheckpointStore
from lora_opt.training.step_log import REMEDY, TrainingDivergedError
from lora_opt.training.train_state import TrainState

_NAME = re.compile(rf'{PREFIX}_\d+')
_SHOWN = 5


class Checkpoints:
  """The checkpoints of one run; a restart uses the newest.

  A checkpoint gets its final name only when it is complete, so a run killed in
  the middle of a save restarts from the one before.
  """

  def __init__(self, model_dir: pathlib.Path, keep: int = 2):
    """Opens (or creates) `model_dir`/checkpoints.

    Damaged checkpoints newer than the newest good one are moved to
    `model_dir`/damaged, and a message names them.

    Args:
      model_dir: the run's folder, seen by all processes; local, or in a bucket.
      keep: how many checkpoints to keep; older ones are deleted.

    Raises:
      ValueError: the folder is on s3:// and there are several processes.
    """
    folder = model_dir / 'checkpoints'
    self._store = None
    check_place(model_dir)
    if _is_on_s3(folder):
      self._store = CheckpointStore(folder, _NAME)
      folder = self._store.folder
    self._folder = folder if is_bucket(folder) else folder.absolute()
    on_first(functools.partial(_set_damaged_aside, self._folder, model_dir))
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        step_prefix=PREFIX,
        cleanup_tmp_directories=True,
      ),
      item_names=ITEMS,
    )

  @property
  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, state: TrainState, batches: grain.DatasetIterator) -> None:
    """Starts a save in the background; the next save waits for this one.

    Args:
      state: the state after some step; copied before the call returns, so that
        the next step may reuse its buffers.
      batches: the data iterator, at its position after that step.

    Raises:
      TrainingDivergedError: the state has a number that is not finite.
      OSError, ValueError: an earlier save could not be written.
    """
    if self._store is not None:
      self._store.wait()
    step, arrays = int(state.step), by_path(state)
    if broken := not_finite(arrays):
      what = f'{min(broken)} is not finite'
      raise TrainingDivergedError(
        what,
        step,
        f'{what} after step {step}; training stopped and that state was not '
        f'saved. {REMEDY}',
      )
    sums = jax.device_get(checksums(arrays))
    facts = {
      'batches': batches.get_state(),
      'checksums': {name: int(value) for name, value in sums.items()},
      'shapes': {name: list(x.shape) for name, x in arrays.items()},
    }
    facts['checksum'] = facts_checksum(facts)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(arrays), facts=ocp.args.JsonSave(facts)
      ),
    )
    if self._store is not None:
      self._store.put_after(self._manager.wait_until_finished)

  def restore(
    self, state: TrainState, batches: grain.DatasetIterator
  ) -> TrainState:
    """Restores the newest checkpoint, or returns `state` if there is none.

    Args:
      state: has the wanted structure, dtypes and shardings; the shardings may
        differ from those that were saved.
      batches: its position is set to the checkpoint's.

    Raises:
      ValueError: the checkpoint is of another model, optimizer or data; or the
        data read differ from the data written.
    """
    step = self.latest_step
    if step is None:
      return state
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, by_path(state))
    # Checked before Orbax does it, whose message has a line for every array.
    _check_same_arrays(self._folder / f'{PREFIX}_{step}', wanted)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item=wanted,
          restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        ),
        facts=ocp.args.JsonRestore(),
      ),
    )
    arrays, facts = restored['state'], restored['facts']
    for name, value in jax.device_get(checksums(arrays)).items():
      if value != facts['checksums'][name]:
        raise ValueError(
          f'checkpoint of step {step}: {name} was not read as it was written; '
          'start again, and look for a failing disk or memory if it recurs'
        )
    batches.set_state(facts['batches'])
    leaves = [arrays[name] for name in by_path(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Waits for the save in progress, unless that needs a lost process."""
    lost = isinstance(error, jax.errors.JaxRuntimeError)
    if not (lost and jax.process_count() > 1):
      if self._store is not None:
        self._store.wait()
      self._manager.wait_until_finished()
      self._manager.close()
    if self._store is not None:
      self._store.close()


def _check_same_arrays(
  path: pathlib.Path, here: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  """Raises ValueError unless a checkpoint has arrays of these names and shapes.

  Args:
    path: the checkpoint.
    here: the arrays that the run needs.
  """
  facts = read_json(path / 'facts' / 'metadata')
  names = values.table(facts.get('checksums'), f'{path}: checksums')
  shapes = values.table(facts.get('shapes', {}), f'{path}: shapes')
  lines = []
  for name in sorted(names.keys() | here.keys()):
    if name not in names:
      lines.append(f'  {name}: missing')
    elif name not in here:
      lines.append(f'  {name}: of no use here')
    elif shapes.get(name, list(here[name].shape)) != list(here[name].shape):
      lines.append(
        f'  {name}: shape {shapes[name]}, here {list(here[name].shape)}'
      )
  if lines:
    more = [f'  and {len(lines) - _SHOWN} more'] if lines[_SHOWN:] else []
    raise ValueError(
      f'the checkpoint {path} is of another optimizer, model or LORA:\n'
      + '\n'.join(lines[:_SHOWN] + more)
      + '\nUse the settings of the run that is there (config.gin has them), or '
      'choose another MODEL_DIR.'
    )


def _is_on_s3(folder: pathlib.Path) -> bool:
  return os.fspath(folder).startswith('s3://')


def check_place(model_dir: pathlib.Path) -> None:
  """Raises ValueError if several processes would write to S3."""
  if _is_on_s3(model_dir) and jax.process_count() > 1:
    raise ValueError(
      f'MODEL_DIR={model_dir}: a run of {jax.process_count()} processes '
      'cannot keep its checkpoints on s3://, where each would have a part of '
      f'them on a disk of its own: Orbax {ocp.__version__} writes to local '
      'and shared disks and to gs:// alone. Take gs://, a shared disk, or one '
      'process'
    )


def _set_damaged_aside(folder: pathlib.Path, model_dir: pathlib.Path) -> None:
  """Moves damaged checkpoints newer than the newest good one out of the way."""
  newest_first = sorted(
    filter(is_finished, folder.glob(f'{PREFIX}_*[0-9]')),
    key=lambda path: int(path.name.rpartition('_')[2]),
    reverse=True,
  )
  for path in newest_first:
    reason = damage(path)
    if not reason:
      return
    aside = run_directory.set_aside(
      model_dir, model_dir / 'checkpoints' / path.name
    )
    if path.exists():  # the local copy of a checkpoint on S3
      shutil.rmtree(path)
    print(
      f'Checkpoint {path.name} is damaged ({reason}); it was moved to {aside}, '
      'and the run goes on from the one before, or from the start if there is '
      'none.',
      flush=True,
    )
