"""Makes several processes start together, and stop after the same step.

What they do in between is coordinated by `lora_opt.devices.together`.
"""

import contextlib
import os
import signal
import sys
import time
from types import TracebackType
from typing import Self

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from lora_opt import progress
from lora_opt.devices.together import is_first
from lora_opt.training import network, stopping
from lora_opt.training.stopping import Stops

_LAST_SECONDS = 3.0


def start(
  coordinator_address: str | None,
  process_count: int | None,
  process_index: int | None,
  heartbeat_timeout_seconds: int,
) -> None:
  """Joins the other processes; call it before anything else of JAX.

  Args:
    coordinator_address: host:port of the first process; with 'auto' or None it
      is taken, like the two numbers, from SLURM, Open MPI, Cloud TPU or GKE.
    process_count, process_index: the number of processes in this run, and the
      index of this one.
    heartbeat_timeout_seconds: a process that is silent for so long counts as
      lost, and the others end.

  Raises:
    ValueError: the environment does not describe the processes, or the address
      is not host:port.
  """
  if coordinator_address == 'auto':
    coordinator_address = None
  # See `Agreement`.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    coordinator_address,
    process_count,
    process_index,
    coordinator_bind_address=network.bind_address(coordinator_address),
    heartbeat_timeout_seconds=heartbeat_timeout_seconds,
    # All processes end together. If one has ended early, the others must not
    # wait for it for the five minutes of the default.
    shutdown_timeout_seconds=heartbeat_timeout_seconds,
  )
  local = network.is_loopback(coordinator_address)
  if local and not network.keep_collectives_local():
    print('note: CPU collectives listen at the address of this machine')
  if not is_first():
    # Only the first process prints what is the same in all of them. Every
    # process still reports errors on standard error.
    progress.mute()
    sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115


def leave_others() -> None:
  """Ends a process that was told to stop; returns if it is the only one.

  It does not wait for the others, which may not have been told. They are all
  connected to the first process, which gives those that were told time to end.
  """
  if distributed.global_state.client is None:
    return
  if distributed.global_state.process_id == 0:
    time.sleep(_LAST_SECONDS)
  sys.stdout.flush()
  os._exit(stopping.EXIT)


class Agreement:
  """Lets the processes of a run stop after the same step.

  The signal may reach one or all of them, at any time. JAX's preemption service
  lets them agree on a step that none has passed. It takes over the handling of
  SIGTERM, and so is only started here, for the duration of the steps.
  """

  def __init__(self, stops: Stops):
    """All processes must create it together.

    Args:
      stops: receives the signals.
    """
    self._stops = stops
    self._told = False
    self._alone = jax.process_count() == 1

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; call it in every step, in order."""
    if self._alone:
      return bool(self._stops.asked)
    if self._stops.asked and not self._told:
      # A Ctrl-C, or a signal from before the service was started.
      self._told = True
      os.kill(os.getpid(), signal.SIGTERM)
    return multihost_utils.reached_preemption_sync_point(step)

  def evaluating(self) -> contextlib.AbstractContextManager[None]:
    """Surrounds an evaluation; a process that is alone may stop inside it."""
    return self._stops.at_once() if self._alone else contextlib.nullcontext()

  def __enter__(self) -> Self:
    if not self._alone:
      jax.config.update('jax_enable_preemption_service', True)
      if distributed.global_state.preemption_sync_manager is None:
        distributed.global_state.initialize_preemption_sync_manager()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if not self._alone:
      self._stops.restore_sigterm()
