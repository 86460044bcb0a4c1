"""The checkpoints of a run, as whoever wants to know reads them back.

They are written, and restarted from, by `lora_opt.training.checkpointing`.
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
MARK = 'commit_success.txt'  # of what is finished in a bucket, its last file


def is_finished(path: pathlib.Path) -> bool:
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
  """Arrays and facts of a checkpoint, without the other processes."""
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
    if not is_finished(path):
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


def facts_checksum(facts: dict[str, Any]) -> int:
  """The checksum of what a checkpoint says beside its arrays."""
  covered = [facts['batches'], facts['checksums']]
  return zlib.crc32(json.dumps(covered, sort_keys=True).encode())
