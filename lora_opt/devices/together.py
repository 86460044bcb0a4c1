"""Lets several processes act as one: all learn what the first one did alone.

Every process runs the same program, and all of them must call whatever
communicates, in the same order. So they first agree on any decision that
depends on one machine (whether a file exists, an error, a signal).
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

# How long processes wait for each other to compile. A lost process is noticed
# by its missing heartbeat.
_COMPILE_SECONDS = 3600
# Errors that a user can fix. All processes end with the same one.
_SHARED_ERRORS = {'OSError': OSError, 'ValueError': ValueError}


def is_first() -> bool:
  """Whether this process writes the files and speaks to the user."""
  return jax.process_index() == 0


def broadcast(value: Any) -> Any:
  """Returns the `value` of the first process; it must be JSON-able there.

  >>> broadcast({'step': 3})
  {'step': 3}
  """
  text = json.dumps(value).encode() if is_first() else b''
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  # Use few different sizes, since each compiles another program.
  room = np.zeros(1 << max(10, (size - 1).bit_length()), np.uint8)
  room[: len(text)] = np.frombuffer(text, np.uint8)
  return json.loads(multihost_utils.broadcast_one_to_all(room)[:size].tobytes())


def on_first(action: Callable[[], Any]) -> Any:
  """Runs `action` on the first process; all return or raise the same.

  Args:
    action: returns something JSON-able; must not communicate.

  Raises:
    OSError, ValueError: the action raised it.
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
  """A jitted function that all processes start to run at the same time.

  Each process compiles it and then waits for the others. Otherwise the first to
  finish would wait for them in its first collective, and the collectives of
  CPUs (Gloo's) give up after half a minute.
  """

  def __init__(self, jitted: Any):
    """All processes must call it in the same order with the same shapes."""
    self._jitted = jitted
    self._compiled: set[tuple] = set()
    self.lower = jitted.lower

  def __call__(self, *args: Any) -> Any:
    """Calls the function; the first call waits until all have compiled it."""
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
