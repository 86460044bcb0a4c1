"""Seeded damage to files, and what a reader may make of it.

A reader that is given a damaged file either returns, or raises a clear error:
a ValueError or OSError whose message names the file. It does not raise anything
else, hang, or fill the memory. What it returns is for the test to judge.
"""

import contextlib
import copy
import faulthandler
import json
import pathlib
import random
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

SECONDS = 10
MEMORY = 2 * 2**30

_BYTES = (b'\x00', b'\xff', b'\x80', b'\n', b'"', b'{', b'[', b'-1', b'9' * 30)
# What often is not thought of, wherever a value stands in JSON.
NASTY = (
  None,
  True,
  False,
  0,
  -1,
  1,
  2**31,
  2**62,
  10**18,
  0.5,
  -1e300,
  float('nan'),
  float('inf'),
  '',
  'x',
  '16',
  'false',
  '../x',
  '/etc/passwd',
  'é\u2028\x1b[2J',
  '\ud800',
  '(a.+)+b',
  [],
  {},
  [0],
  ['x'],
  [[[]]],
  {'a': {'b': {}}},
)


def damaged(data: bytes, rng: random.Random) -> bytes:
  """The bytes of a file with one to three things done to them."""
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    size = len(data)
    at = rng.randrange(size + 1)
    end = min(size, at + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
    some = data[at:end]
    kind = rng.randrange(8)
    if kind == 0 and some:  # one bit
      flipped = some[0] ^ (1 << rng.randrange(8))
      data = data[:at] + bytes([flipped]) + data[at + 1 :]
    elif kind == 1:  # other bytes
      data = data[:at] + rng.randbytes(len(some)) + data[end:]
    elif kind == 2:  # fewer
      data = data[:at] + data[end:]
    elif kind == 3:  # cut short
      data = data[:at]
    elif kind == 4:  # twice
      data = data[:end] + some + data[end:]
    elif kind == 5:  # something between
      data = data[:at] + rng.choice(_BYTES) + data[at:]
    elif kind == 6:  # something behind
      data += rng.randbytes(rng.choice((1, 8, 100)))
    else:  # a number of four or eight bytes, as sizes and offsets are
      width = rng.choice((4, 8))
      number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1))
      number %= 2 ** (8 * width)
      data = data[:at] + number.to_bytes(width, 'little') + data[at + width :]
  return data


def changed(value: Any, rng: random.Random) -> Any:
  """A value of JSON with one to three entries changed, gone or added."""
  value = copy.deepcopy(value)
  for _ in range(rng.choice((1, 1, 2, 3))):
    places = list(_places(value))
    if not places:
      return rng.choice(NASTY)
    holder, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
      del holder[key]
    elif kind == 1 and isinstance(holder, dict):
      other = rng.choice(list(holder))
      holder[key], holder[other] = holder[other], holder[key]
    elif kind == 2 and isinstance(holder, dict):
      holder[rng.choice(('', 'x', key + 'x'))] = rng.choice(NASTY)
    else:
      holder[key] = copy.deepcopy(rng.choice(NASTY))
  return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
  """Every entry of every list and object, as (holder, key)."""
  keys = value if isinstance(value, dict) else range(len(value))
  if not isinstance(value, dict | list):
    return
  for key in keys:
    yield value, key
    if isinstance(value[key], dict | list):
      yield from _places(value[key])


def damaged_json(value: Any, rng: random.Random) -> bytes:
  """The text of a value, changed as a value, as text, or both."""
  kind = rng.randrange(4)
  text = json.dumps(value if kind == 0 else changed(value, rng))
  data = text.encode()
  return data if kind > 1 else damaged(data, rng)


def outcome(read: Callable[[], Any], *names: str | pathlib.Path) -> Any:
  """What a reader returns, or the clear error it raises.

  Args:
    read: Reads the damaged file.
    *names: The message of an error must hold one of them.

  Raises:
    AssertionError: It raised something else, an unclear error, took too long
      or too much memory.
  """
  before = _peak()
  try:
    with _limits():
      found = read()
  except (ValueError, OSError) as error:
    message = str(error)
    assert type(error) is not UnicodeError and any(
      str(name) in message for name in names
    ), f'the error names none of {names}: {type(error).__name__}: {message}'
    assert len(message) < 3000, f'{len(message)} characters: {message[:300]}'
    found = error
  assert _peak() - before < MEMORY, f'took {_peak() - before:,} bytes'
  return found


def _peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _limits() -> Iterator[None]:
  def late(*_):
    raise AssertionError(f'took more than {SECONDS} seconds')

  previous = signal.signal(signal.SIGALRM, late)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  # What waits inside a library never sees the signal: the process ends.
  faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def seeds(count: int, start: int = 0) -> Iterator[tuple[int, random.Random]]:
  """Numbers from `start` on, each with a generator of its own."""
  for seed in range(start, start + count):
    yield seed, random.Random(seed)
