#!/usr/bin/env python3
"""Runs one training on this machine in several processes that act as one.

    MODEL_DIR=folder launch/processes.py [--processes=2] [--devices=4] \\
      [--dry_run] -- FLAG ...

FLAGs are those of `python -m lora_opt.main`. The output of process I goes to
MODEL_DIR/logs/process_I.log; that of the first is also shown. On SIGTERM and
the first Ctrl-C, all of them save the same step and end; the second Ctrl-C
kills them. When one fails, the others have --grace_seconds to report what they
saw.
"""

import argparse
import contextlib
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from checks import append, span, whole

# Exit code of a process that was stopped before the end of its run.
STOPPED = 75
ROOT = pathlib.Path(__file__).resolve().parents[1]


def training_command(flags: Sequence[str]) -> list[str]:
  """A command that trains in MODEL_DIR, which is an environment variable.

  >>> training_command(['--gin.TRAIN_STEPS=2'])[-2:]
  ['--', '--gin.TRAIN_STEPS=2']
  """
  return ['bash', str(ROOT / 'launch/train.sh'), '--', *flags]


def simulated(devices: int | None) -> dict[str, str]:
  """Environment variables for this many simulated devices per process.

  >>> simulated(None)
  {}
  """
  if devices is None:
    return {}
  given = os.environ.get('XLA_FLAGS', '')
  count = f'--xla_force_host_platform_device_count={devices}'
  return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{given} {count}'.strip()}


def shown(command: Sequence[str], settings: Mapping[str, str]) -> str:
  """The command in shell syntax, after its environment variables.

  >>> shown(['echo', 'a b'], {'X': '1'})
  "X=1 echo 'a b'"
  """
  first = [f'{name}={shlex.quote(value)}' for name, value in settings.items()]
  return ' '.join([*first, shlex.join(command)])


class Processes:
  """The processes of one run, each with a log; the first log is also shown."""

  def __init__(
    self,
    commands: Sequence[Sequence[str]],
    settings: Mapping[str, str],
    logs: pathlib.Path,
  ):
    logs.mkdir(parents=True, exist_ok=True)
    self.logs = [logs / f'process_{i}.log' for i in range(len(commands))]
    self._speaker: threading.Thread | None = None
    self._asked_to_end = False
    self._running: list[subprocess.Popen] = []
    for command, log in zip(commands, self.logs, strict=True):
      first = not self._running
      with append(log) as file:
        process = subprocess.Popen(
          command,
          env=os.environ | settings,
          stdin=subprocess.DEVNULL,
          stdout=subprocess.PIPE if first else file,
          stderr=subprocess.STDOUT,
          # Ctrl-C must reach only this program, which passes on SIGTERM.
          start_new_session=True,
        )
      self._running.append(process)
      if first:
        self._speaker = threading.Thread(target=self._speak, daemon=True)
        self._speaker.start()

  def _speak(self) -> None:
    out = self._running[0].stdout
    with append(self.logs[0]) as log:
      while chunk := out.read1():
        log.write(chunk)
        log.flush()
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

  def pass_on(self, number: int, frame: object = None) -> None:
    """Passes a signal to this program on to all processes."""
    del frame
    kill = number == signal.SIGINT and self._asked_to_end
    self._asked_to_end = True
    for process in self._running:
      process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

  def wait(self, grace_seconds: float) -> int:
    """Waits until all have ended, and kills any that remain.

    Args:
      grace_seconds: how long the others may go on once one has failed.

    Returns:
      0, or the exit code of the process that failed first, as a shell reports
      it: `STOPPED` if a signal stopped the run.
    """
    failed, deadline = None, None
    try:
      while any(process.poll() is None for process in self._running):
        if failed is None and (failed := self._failed()) is not None:
          deadline = time.monotonic() + grace_seconds
        if deadline is not None and time.monotonic() > deadline:
          break
        time.sleep(0.05)
      failed = self._failed() if failed is None else failed
    finally:
      for process in self._running:
        if process.poll() is None:
          # The group includes the processes that make its batches.
          os.killpg(process.pid, signal.SIGKILL)
          process.wait()
      self._speaker.join(timeout=5)
    if failed is None:
      return 0
    code = self._running[failed].returncode
    if code == STOPPED:
      print('processes: stopped; run again to go on', file=sys.stderr)
      return code
    how = f'exit code {code}' if code > 0 else signal.Signals(-code).name
    print(
      f'processes: process {failed} ended first, with {how}; see '
      f'{self.logs[failed]}',
      file=sys.stderr,
    )
    return code if code > 0 else 128 - code

  def _failed(self) -> int | None:
    for index, process in enumerate(self._running):
      if process.poll():
        return index
    return None


def free_port() -> int:
  with contextlib.closing(socket.socket()) as server:
    server.bind(('localhost', 0))
    return server.getsockname()[1]


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--processes', type=whole(1, 1024), default=2, help='number of processes'
  )
  parser.add_argument(
    '--devices',
    type=whole(1, 4096),
    help='simulated devices of each process; without it, the real ones',
  )
  parser.add_argument(
    '--port',
    type=whole(0, 65535),
    default=0,
    help='port of the first process; 0: a free one',
  )
  parser.add_argument('--grace_seconds', type=span, default=40)
  parser.add_argument(
    '--dry_run', action='store_true', help='only print the commands'
  )
  parser.add_argument('flags', nargs='*', metavar='FLAG')
  options = parser.parse_args(arguments)
  model_dir = os.environ.get('MODEL_DIR')
  if not model_dir:
    parser.error('set MODEL_DIR=folder of the run')
  if '://' in model_dir:
    parser.error(
      f'MODEL_DIR={model_dir}: the logs of the processes are kept in '
      'MODEL_DIR/logs, which must be a folder; launch/train.sh and '
      'launch/worker.sh take a bucket'
    )
  address = f'localhost:{options.port or free_port()}'
  commands = [
    training_command(
      [
        *options.flags,
        f'--coordinator_address={address}',
        f'--process_count={options.processes}',
        f'--process_index={index}',
      ],
    )
    for index in range(options.processes)
  ]
  settings = {'MODEL_DIR': model_dir, **simulated(options.devices)}
  if options.dry_run:
    for command in commands:
      print(shown(command, settings))
    return 0
  try:
    processes = Processes(commands, settings, pathlib.Path(model_dir) / 'logs')
  except OSError as error:
    parser.error(str(error))
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, processes.pass_on)
  return processes.wait(options.grace_seconds)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
