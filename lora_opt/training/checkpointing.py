"""Orbax checkpoints: step, adapters, optimizer state, place in the data.

A checkpoint holds nothing of the machine that wrote it: arrays by name, each
whole, and one place in the data for all processes. It can be read onto any
number of processes and devices. Checksums travel with it, so that a damaged one
is found before anything is trained from it.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from lora_opt.buckets.paths import is_bucket
from lora_opt.reading import values
from lora_opt.reading.copies import local_copy
from lora_opt.reading.json_text import read_json
from lora_opt.training import run_directory
from lora_opt.training.checkpoint_store import MARK, CheckpointStore
from lora_opt.training.checksums import checksums, host_checksum
from lora_opt.training.finite import by_path, not_finite
from lora_opt.training.processes import on_first
from lora_opt.training.step_log import REMEDY, TrainingDivergedError
from lora_opt.training.train_state import TrainState

_PREFIX = 'step'
_NAME = re.compile(rf'{_PREFIX}_\d+')
_ITEMS = ('state', 'facts')
_SHOWN = 5


class Checkpoints:
  """The checkpoints of one run, newest first in line for a restart.

  A checkpoint appears under its final name only when it is whole, so a run
  killed in the middle of a save restarts from the one before.
  """

  def __init__(self, model_dir: pathlib.Path, keep: int = 2):
    """Opens (or creates) `model_dir`/checkpoints.

    Damaged checkpoints newer than the newest good one are moved to
    `model_dir`/damaged, and named.

    Args:
      model_dir: the run's folder, seen by all processes; local, or in a bucket.
      keep: how many checkpoints to hold; older ones are deleted.

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
        step_prefix=_PREFIX,
        cleanup_tmp_directories=True,
      ),
      item_names=_ITEMS,
    )

  @property
  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, state: TrainState, batches: grain.DatasetIterator) -> None:
    """Starts to write in the background; the next save waits for this one.

    Args:
      state: after some step; copied before the call returns, so that the next
        step may take its buffers.
      batches: the data iterator, in the position after that step.

    Raises:
      TrainingDivergedError: a number of the state is not finite.
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
    facts['checksum'] = _facts_checksum(facts)
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
    """The newest checkpointed state, or `state` itself where there is none.

    Args:
      state: of the wanted structure, dtypes and shardings; they need not be
        those it was saved with.
      batches: its position is set to the checkpoint's.

    Raises:
      ValueError: the checkpoint is of another model, optimizer or data; or
        what was read is not what was written.
    """
    step = self.latest_step
    if step is None:
      return state
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, by_path(state))
    # Before Orbax does, whose message has a line for every array.
    _check_same_arrays(self._folder / f'{_PREFIX}_{step}', wanted)
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
    """Waits for what is being written, unless that needs a lost process."""
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
    path: of the checkpoint.
    here: what the run is to have.
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


def _facts_checksum(facts: dict[str, Any]) -> int:
  covered = [facts['batches'], facts['checksums']]
  return zlib.crc32(json.dumps(covered, sort_keys=True).encode())


def _is_on_s3(folder: pathlib.Path) -> bool:
  return os.fspath(folder).startswith('s3://')


def check_place(model_dir: pathlib.Path) -> None:
  """Raises ValueError where several processes are to write to S3."""
  if _is_on_s3(model_dir) and jax.process_count() > 1:
    raise ValueError(
      f'MODEL_DIR={model_dir}: a run of {jax.process_count()} processes '
      'cannot keep its checkpoints on s3://, where each would have a part of '
      f'them on a disk of its own: Orbax {ocp.__version__} writes to local '
      'and shared disks and to gs:// alone. Take gs://, a shared disk, or one '
      'process'
    )


def _set_damaged_aside(folder: pathlib.Path, model_dir: pathlib.Path) -> None:
  """Moves what is newer than the newest good checkpoint out of the way."""
  newest_first = sorted(
    filter(_is_finished, folder.glob(f'{_PREFIX}_*[0-9]')),
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
    if path.exists():  # the local double of one on S3
      shutil.rmtree(path)
    print(
      f'Checkpoint {path.name} is damaged ({reason}); it was moved to {aside}, '
      'and the run goes on from the one before, or from the start if there is '
      'none.',
      flush=True,
    )


def _is_finished(path: pathlib.Path) -> bool:
  """Whether a checkpoint was written to its end: by its mark, in a bucket."""
  return not is_bucket(path) or (path / MARK).exists()


def damage(path: pathlib.Path) -> str:
  """What is wrong with a checkpoint, '' if it is sound.

  Read by this process alone, onto the host.
  """
  # Whatever a library makes of damaged files is damage.
  try:
    state, facts = read(path)
    expected = facts['checksums']
    if facts['checksum'] != _facts_checksum(facts):
      return 'the checksum of its facts differs'
    if expected.keys() != state.keys():
      return 'arrays are missing'
    for name, array in state.items():
      if host_checksum(array) != expected[name]:
        return f'the checksum of {name} differs'
  except Exception as error:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
  return ''


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Arrays and facts of a checkpoint, without the other processes."""
  this = jax.process_index()
  with ocp.CheckpointManager(
    path.parent,
    options=ocp.CheckpointManagerOptions(
      step_prefix=_PREFIX,
      create=False,
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=this,
        active_processes={this},
        barrier_sync_key_prefix='check',
      ),
    ),
    item_names=_ITEMS,
  ) as manager:
    step = int(path.name.rpartition('_')[2])
    facts = manager.restore(
      step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
    )['facts']
    to_host = {
      name: ocp.RestoreArgs(restore_type=np.ndarray)
      for name in facts['checksums']
    }
    # Orbax reads the metadata of all arrays (array_metadatas/) only if one goes
    # to a device, as all do in a restart: this one, so that damage shows here.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    to_host['step'] = ocp.ArrayRestoreArgs(sharding=here)
    state = manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item=dict.fromkeys(to_host, 0), restore_args=to_host
        )
      ),
    )['state']
  return jax.tree.map(np.asarray, state), facts


def is_checkpoint(path: pathlib.Path) -> bool:
  """Whether this folder is a checkpoint, such as checkpoints/step_40."""
  return (path / 'state').is_dir()


def read_trainable(path: pathlib.Path, like: Any) -> Any:
  """The trained parameters of a checkpoint, and nothing else of it.

  Args:
    path: such as MODEL_DIR/checkpoints/step_40.
    like: tree of what they should be, arrays or `jax.ShapeDtypeStruct`.

  Returns:
    The same tree with NumPy arrays.

  Raises:
    ValueError: the checkpoint is damaged, or holds others; names the first
      that differs.
  """
  if is_bucket(path):
    if not _is_finished(path):
      raise ValueError(f'the checkpoint {path} was not written to its end')
    path = local_copy(path, what='checkpoint')
  path = path.absolute()
  if reason := damage(path):
    raise ValueError(f'the checkpoint {path} is damaged: {reason}')
  arrays, _ = read(path)

  def find(place, wanted):
    name = jax.tree_util.keystr(place, simple=True, separator='/')
    found = arrays.get(f'lora/{name}')
    if found is None:
      raise ValueError(f'{path} has no {name}: it is of another model or LORA')
    if found.shape != wanted.shape:
      raise ValueError(
        f'{path}: {name} has shape {found.shape}, the model wants '
        f'{wanted.shape}: take the LORA settings of that run'
      )
    return found

  return jax.tree.map_with_path(find, like)
