"""Several processes act as one: what the first does alone, all learn of.

Every process runs the same program, and whatever communicates must be called
by all of them in the same order. So a decision that depends on one machine
(a file that is there, an error, a signal) is first agreed on.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax._src import distributed
from jax.experimental import multihost_utils

from lora_opt import progress
from lora_opt.training import network, stopping
from lora_opt.training.stopping import Stops

# How far processes may be apart when they compile; a lost one is noticed by
# its heartbeat.
_COMPILE_SECONDS = 3600
_LAST_SECONDS = 3.0
# What a user can mend, and hence what all processes end with alike.
_SHARED_ERRORS = {'OSError': OSError, 'ValueError': ValueError}


def start(
  coordinator_address: str | None,
  process_count: int | None,
  process_index: int | None,
  heartbeat_timeout_seconds: int,
) -> None:
  """Joins the other processes; before anything else of JAX is used.

  Args:
    coordinator_address: host:port of the first process; 'auto' or None leaves
      it, and the numbers too, to what SLURM, Open MPI, Cloud TPU or GKE set.
    process_count, process_index: of this run.
    heartbeat_timeout_seconds: a process that is silent for so long is given
      up: the others end.

  Raises:
    ValueError: an environment that says nothing of the processes, or an
      address that is not host:port.
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
    # All processes end together; one that ended for a reason of its own must
    # not keep the others for the five minutes of the default.
    shutdown_timeout_seconds=heartbeat_timeout_seconds,
  )
  local = network.is_loopback(coordinator_address)
  if local and not network.keep_collectives_local():
    print('note: CPU collectives listen at the address of this machine')
  if not is_first():
    # One voice: the first process tells what is the same in all of them. Errors
    # are still everyone's, on standard error.
    progress.mute()
    sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115


def is_first() -> bool:
  """Whether this process writes the files and speaks to the user."""
  return jax.process_index() == 0


def broadcast(value: Any) -> Any:
  """What the first process holds; `value` must be JSON-able there.

  >>> broadcast({'step': 3})
  {'step': 3}
  """
  text = json.dumps(value).encode() if is_first() else b''
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  # Few sizes, since each is a program of its own.
  room = np.zeros(1 << max(10, (size - 1).bit_length()), np.uint8)
  room[: len(text)] = np.frombuffer(text, np.uint8)
  return json.loads(multihost_utils.broadcast_one_to_all(room)[:size].tobytes())


def on_first(action: Callable[[], Any]) -> Any:
  """Runs `action` on the first process; all return or raise what it did.

  Args:
    action: returns something JSON-able; must not communicate.

  Raises:
    OSError, ValueError: the action did.
  """
  if jax.process_count() == 1:
    return action()
  result = error = None
  if is_first():
    try:
      result = action()
    except tuple(_SHARED_ERRORS.values()) as caught:
      error = caught
  kind = 'OSError' if isinstance(error, OSError) else 'ValueError'
  kind, message, result = broadcast(
    (kind if error else '', str(error or ''), result)
  )
  if error is not None:
    raise error
  if kind:
    raise _SHARED_ERRORS[kind](message)
  return result


def leave_others() -> None:
  """Ends one of several processes that was told to stop; returns if alone.

  It does not wait for the others, which may not have been told. They are
  connected to the first one: it gives those that were told time to end too.
  """
  if distributed.global_state.client is None:
    return
  if distributed.global_state.process_id == 0:
    time.sleep(_LAST_SECONDS)
  sys.stdout.flush()
  os._exit(stopping.EXIT)


class Together:
  """A jitted function that all processes begin to run at the same time.

  Each compiles it, and then waits for the others. Without, the first to be done
  would wait for them in its first collective, and Gloo's, those of CPUs, give
  up after half a minute.
  """

  def __init__(self, jitted: Any):
    """All processes must call it in the same order with the same shapes."""
    self._jitted = jitted
    self._compiled: set[tuple] = set()
    self.lower = jitted.lower

  def __call__(self, *args: Any) -> Any:
    """What the function returns."""
    shapes = tuple(
      (np.shape(x), np.result_type(x)) for x in jax.tree.leaves(args)
    )
    if shapes not in self._compiled:
      self.lower(*args).compile()
      meet()
      self._compiled.add(shapes)
    return self._jitted(*args)


_meetings = itertools.count()


def meet() -> None:
  """Waits for all processes, without a collective."""
  if jax.process_count() == 1:
    return
  ocp.multihost.sync_global_processes(
    f'lora_opt_meeting_{next(_meetings)}',
    timeout=_COMPILE_SECONDS,
    processes=set(range(jax.process_count())),
  )


class Agreement:
  """Lets the processes of a run stop after the same step.

  The signal may reach one or all of them, at any time: JAX's preemption service
  then lets them agree on a step that none has passed. It takes SIGTERM for
  itself, and hence is started here, where there are steps.
  """

  def __init__(self, stops: Stops):
    """All processes must make it together.

    Args:
      stops: what hears the signals.
    """
    self._stops = stops
    self._told = False
    self._alone = jax.process_count() == 1

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; every step must ask, in order."""
    if self._alone:
      return bool(self._stops.asked)
    if self._stops.asked and not self._told:
      # Ctrl-C, or before the service began.
      self._told = True
      os.kill(os.getpid(), signal.SIGTERM)
    return multihost_utils.reached_preemption_sync_point(step)

  def evaluating(self) -> contextlib.AbstractContextManager[None]:
    """Between two steps: alone, a process may leave what it does inside."""
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
