"""Processes untrusted input in a subprocess with time and memory limits.

A template that loops for ever, a regular expression that backtracks, a damaged
file that crashes a library: none of these can be stopped within a process. The
function that runs in the subprocess is ours and trusted; its input is not.
"""

import atexit
import json
import os
import pathlib
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

SECONDS = 10.0
MEMORY = 2**30
# Limit for the start of the process, before it gets any work. On a busy machine
# even imports take minutes, and the input is not to blame for that.
_START_SECONDS = 600.0
# In wall-clock time a call may take ten times its CPU time limit plus this many
# seconds. A process that waits for a CPU or a disk is not to blame either, but
# one that waits for ever is.
_PATIENCE = 120.0
# Libraries start a thread for every core, and the C library reserves 64 MiB of
# address space for each. With many cores none would be left for the work.
_ENVIRONMENT = {
  'MALLOC_ARENA_MAX': '1',
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'RAYON_NUM_THREADS': '1',
}
_LENGTH = struct.Struct('<cQ')
_STARTED: weakref.WeakSet = weakref.WeakSet()

# Runs in the subprocess. The file is loaded by its path, so that only what it
# imports itself is loaded, and above all not jax, which is slow.
_PROGRAM = r"""
import importlib.util, json, os, signal, struct, sys
path, name, memory, seconds, folders = json.loads(sys.argv[1])
sys.path[:] = folders
replies = os.fdopen(os.dup(1), 'wb')
os.dup2(2, 1)  # what is printed must not get between the replies
try:
  import resource
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except (ImportError, OSError, ValueError):
  pass  # not on this system
spec = importlib.util.spec_from_file_location('confined_work', path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
function = getattr(module, name)
def reply(kind, data):
  replies.write(struct.pack('<cQ', kind, len(data)) + data)
  replies.flush()
timed = hasattr(signal, 'setitimer')  # not on every system
if timed:  # whoever started us may not listen to this signal, which ends us
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
def limit(seconds):
  if timed:
    signal.setitimer(signal.ITIMER_PROF, seconds)
reply(b'R', b'')
for line in sys.stdin.buffer:
  try:
    limit(seconds)
    found = function(*json.loads(line))
    limit(0)
    if isinstance(found, bytes):
      reply(b'B', found)
    else:
      reply(b'J', json.dumps(found).encode())
  except MemoryError:
    reply(b'M', b'')
  except Exception as error:
    reply(b'E', f'{type(error).__name__}: {error}'.encode('utf-8', 'replace'))
"""


class ConfinedError(ValueError):
  """The work failed, or exceeded its limits."""


class Confined:
  """A function that runs in its own process, which is started on demand.

  The process is kept for further calls, and restarted after a call that had to
  be killed. It is not a sandbox: the function must not execute its input.

  Attributes:
    file: The Python file of the function. It may import installed packages, but
      nothing from `lora_opt`.
    function: The name of the function in that file. Its arguments must be
      serialisable as JSON, and so must its result, unless that is bytes.
    seconds: CPU time that one call may take. In wall-clock time it may take ten
      times as long plus two minutes, to allow for a busy machine or slow disk.
    memory: Bytes of address space that the process may use.

  Raises (when called):
    ConfinedError: The function raised an error, took too long or too much
      memory, or its process crashed.
  """

  def __init__(
    self,
    file: str | os.PathLike,
    function: str,
    *,
    seconds: float = SECONDS,
    memory: int = MEMORY,
  ):
    self.file = pathlib.Path(file)
    self.function = function
    self.seconds = seconds
    self.memory = memory
    self._lock = threading.Lock()
    self._process: subprocess.Popen | None = None
    self._owner = 0

  def __call__(self, *arguments: Any) -> Any:
    request = json.dumps(arguments).encode() + b'\n'
    with self._lock:
      if self._process is None or self._owner != os.getpid():
        self._start()
      return self._ask(request)

  def __getstate__(self) -> dict[str, Any]:
    """Leaves out the process: a copy elsewhere starts its own."""
    state = dict(self.__dict__)
    del state['_lock']
    return state | {'_process': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock())

  def close(self) -> None:
    """Ends the process, if there is one."""
    with self._lock:
      self._end()

  def _start(self) -> None:
    folders = [os.path.abspath(folder) for folder in sys.path]
    limits = [self.memory, self.seconds]
    settings = [str(self.file), self.function, *limits, folders]
    # -I: ignores Python's environment variables and the working directory.
    command = [sys.executable, '-I', '-c', _PROGRAM, json.dumps(settings)]
    self._process = subprocess.Popen(
      command,
      env=os.environ | _ENVIRONMENT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C reaches us only, and we end it
    )
    self._owner = os.getpid()
    _STARTED.add(self)
    try:
      kind, _ = self._receive(_START_SECONDS)
    except ConfinedError as error:
      raise ConfinedError(f'could not begin: the start {error}') from None
    if kind != b'R':
      raise ConfinedError(f'the process of {self.file.name} did not start')

  def _ask(self, request: bytes) -> Any:
    try:
      self._process.stdin.write(request)
      self._process.stdin.flush()
    except OSError:
      pass  # the process has ended; `_receive` finds out how
    kind, data = self._receive(_PATIENCE + 10 * self.seconds)
    if kind == b'J':
      return json.loads(data)
    if kind == b'B':
      return data
    if kind == b'M':
      self._end()  # too little of its memory may be left for the next call
      raise ConfinedError(f'took more than {self.memory / 2**20:.0f} MiB')
    raise ConfinedError(data.decode())

  def _receive(self, seconds: float) -> tuple[bytes, bytes]:
    """The next reply; ends the process if there is none in time."""
    until = time.monotonic() + seconds
    kind, length = _LENGTH.unpack(
      self._read(_LENGTH.size, until) or _LENGTH.pack(b'-', 0)
    )
    data = None if kind == b'-' else self._read(length, until)
    if data is not None:
      return kind, data
    late = time.monotonic() >= until
    if late:
      self._process.kill()
    code = self._end()
    if late:
      raise ConfinedError(f'took more than {seconds:g} seconds')
    if code == -signal.SIGPROF:
      raise ConfinedError(f'took more than {self.seconds:g} seconds')
    how = signal.Signals(-code).name if code < 0 else f'status {code}'
    raise ConfinedError(
      f'its process ended with {how}, at most {self.memory / 2**20:.0f} MiB '
      'of memory are given to it'
    )

  def _read(self, size: int, until: float) -> bytes | None:
    """Reads `size` bytes; None if they do not arrive in time or at all."""
    stream, parts = self._process.stdout.fileno(), []
    ready = select.poll()
    ready.register(stream, select.POLLIN)
    while size:
      left = max(0.0, until - time.monotonic())
      if not ready.poll(1000 * left):
        return None
      part = os.read(stream, min(size, 2**20))
      if not part:
        return None
      parts.append(part)
      size -= len(part)
    return b''.join(parts)

  def _end(self) -> int:
    process, self._process = self._process, None
    if process is None or self._owner != os.getpid():
      return 0
    # Wait briefly for it to end by itself: its exit code says what happened.
    try:
      code = process.wait(timeout=1.0 if process.stdin.closed else 0.2)
    except subprocess.TimeoutExpired:
      process.kill()
      code = process.wait()
    process.stdin.close()
    process.stdout.close()
    return code

  def __del__(self):
    if getattr(self, '_process', None) is not None:
      self._end()


@atexit.register
def _close_all() -> None:
  """Ends all processes while the interpreter is still able to."""
  for one in list(_STARTED):
    one.close()
