"""Orbax checkpoints: step, adapters, optimizer state, place in the data."""

import pathlib

import grain
import jax
import orbax.checkpoint as ocp

from lora_opt.training.train_state import TrainState


class Checkpoints:
  """The checkpoints of one run, newest first in line for a restart.

  A checkpoint appears under its final name only when it is whole, so a run
  killed in the middle of a save restarts from the one before.
  """

  def __init__(self, model_dir: pathlib.Path, keep: int = 2):
    """Opens (or creates) `model_dir`/checkpoints.

    Args:
      model_dir: the run's folder.
      keep: how many checkpoints to hold; older ones are deleted.
    """
    self._manager = ocp.CheckpointManager(
      (model_dir / 'checkpoints').absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        step_prefix='step',
        cleanup_tmp_directories=True,
      ),
      item_names=('state', 'data'),
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
    """
    self._manager.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state._asdict()),
        data=grain.checkpoint.CheckpointSave(batches),
      ),
    )

  def restore(
    self, state: TrainState, batches: grain.DatasetIterator
  ) -> TrainState:
    """The newest checkpointed state, or `state` itself where there is none.

    Args:
      state: of the wanted structure, dtypes and shardings.
      batches: its position is set to the checkpoint's.
    """
    step = self.latest_step
    if step is None:
      return state
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state._asdict())
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        data=grain.checkpoint.CheckpointRestore(batches),
      ),
    )
    return TrainState(**restored['state'])

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()
