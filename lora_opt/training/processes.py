"""Several processes act as one: what the first does alone, all learn of.

Every process runs the same program, and whatever communicates must be called
by all of them in the same order. So a decision that depends on one machine
(a file that is there, an error, a signal) is first agreed on.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lora_opt.training import network

# How far processes may be apart when they compile; a lost one is noticed by
# its heartbeat.
_COMPILE_SECONDS = 3600
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
      _meet()
      self._compiled.add(shapes)
    return self._jitted(*args)


_meetings = itertools.count()


def _meet() -> None:
  """Waits for all processes, without a collective."""
  ocp.multihost.sync_global_processes(
    f'lora_opt_compiled_{next(_meetings)}',
    timeout=_COMPILE_SECONDS,
    processes=set(range(jax.process_count())),
  )


class StopOnSigterm:
  """SIGTERM, as schedulers send it before they take a machine away.

  While open, the signal only makes `requested` true; the loop ends at its step.
  With several processes the signal may reach one or all of them, at any time:
  JAX's preemption service then lets them agree on a step that none has passed.

  >>> import os
  >>> with StopOnSigterm() as stop:
  ...   os.kill(os.getpid(), signal.SIGTERM)
  ...   stop.requested(step=1)
  True
  """

  def __init__(self):
    self._signalled = False
    self._alone = jax.process_count() == 1

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; every step must ask, in order."""
    if self._alone:
      return self._signalled
    return multihost_utils.reached_preemption_sync_point(step)

  def __enter__(self) -> Self:
    if self._alone:
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def _note(self, number: int, frame: object) -> None:
    del number, frame
    self._signalled = True

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self._alone:
      signal.signal(signal.SIGTERM, self._previous)
