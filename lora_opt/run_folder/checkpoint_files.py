"""Reads and checks the checkpoints of a run.

`lora_opt.training.checkpointing` writes them, and restarts runs from them.
"""

import json
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lora_opt.buckets.paths import is_bucket
from lora_opt.devices.checksums import host_checksum
from lora_opt.reading.copies import local_copy

PREFIX = 'step'
ITEMS = ('state', 'facts')
_AVERAGE = '/average/'  # in the names of arrays of `transforms.AveragedState`
MARK = 'commit_success.txt'  # in a bucket, the last file of a finished one


def is_finished(path: pathlib.Path) -> bool:
  """Whether a checkpoint is complete; in a bucket its mark tells."""
  return not is_bucket(path) or (path / MARK).exists()


def damage(path: pathlib.Path) -> str:
  """Says what is wrong with a checkpoint, '' if it is sound.

  Only this process reads it, into host memory.
  """
  # Any error that a library raises for the files counts as damage.
  try:
    state, facts = read(path)
    expected = facts['checksums']
    if facts['checksum'] != facts_checksum(facts):
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
  """Reads arrays and facts of a checkpoint, in this process only."""
  this = jax.process_index()
  with ocp.CheckpointManager(
    path.parent,
    options=ocp.CheckpointManagerOptions(
      step_prefix=PREFIX,
      create=False,
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=this,
        active_processes={this},
        barrier_sync_key_prefix='check',
      ),
    ),
    item_names=ITEMS,
  ) as manager:
    step = int(path.name.rpartition('_')[2])
    facts = manager.restore(
      step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
    )['facts']
    to_host = {
      name: ocp.RestoreArgs(restore_type=np.ndarray)
      for name in facts['checksums']
    }
    # Orbax reads the metadata of all arrays (array_metadatas/) only if one is
    # restored to a device, as all are in a restart. So 'step' is, to detect
    # damage in the metadata here.
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
  """Whether a folder is a checkpoint, such as checkpoints/step_40."""
  return (path / 'state').is_dir()


def read_trainable(path: pathlib.Path, like: Any) -> Any:
  """Reads only the trained parameters of a checkpoint.

  If the optimizer keeps an average of them (`lora_opt.averaged`), that is read.

  Args:
    path: the checkpoint, such as MODEL_DIR/checkpoints/step_40.
    like: tree of the expected arrays, or their `jax.ShapeDtypeStruct`.

  Returns:
    The same tree with NumPy arrays.

  Raises:
    ValueError: the checkpoint is damaged, or has other parameters; the message
      names the first that differs.
  """
  if is_bucket(path):
    if not is_finished(path):
      raise ValueError(f'the checkpoint {path} was not written to its end')
    path = local_copy(path, what='checkpoint')
  path = path.absolute()
  if reason := damage(path):
    raise ValueError(f'the checkpoint {path} is damaged: {reason}')
  arrays, _ = read(path)
  averages = {
    name.partition(_AVERAGE)[2]: array
    for name, array in arrays.items()
    if name.startswith('opt_state/') and _AVERAGE in name
  }

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
    return averages.get(name, found).astype(found.dtype)

  return jax.tree.map_with_path(find, like)


def facts_checksum(facts: dict[str, Any]) -> int:
  """The checksum of a checkpoint's data position and array checksums."""
  covered = [facts['batches'], facts['checksums']]
  return zlib.crc32(json.dumps(covered, sort_keys=True).encode())
