"""Starts runs of the command line, in one or several real processes."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

FLAGS = [
  '--gin_file=configs/runs/finetune.gin',
  '--gin_file=configs/models/random.gin',
  '--gin_file=configs/lora/all_linear.gin',
  '--gin_file=configs/tasks/word_sequence_reversal.gin',
  '--gin_file=configs/optimizers/lora_rite.gin',
  '--gin.BATCH_SIZE=8',
  '--gin.TRAIN_EXAMPLES=50',
  '--gin.EVAL_EXAMPLES=4',
  '--gin.MAX_NEW_TOKENS=4',
  '--gin.LORA_RANK=2',
  '--gin.DROPOUT_RATE=0.1',
  '--gin.models.random_model.num_layers=1',
  "--gin.models.random_model.remat='none'",
]


class Run:
  """The processes of one run; each writes a log of its own."""

  def __init__(
    self,
    folder: pathlib.Path,
    *flags: str,
    processes: int = 1,
    devices: int = 1,
    cache: pathlib.Path,
    first: Sequence[str] = FLAGS,
    bucket: str | None = None,
  ):
    """Starts them.

    Args:
      folder: MODEL_DIR; the logs lie beside it.
      *flags: further flags.
      processes: how many.
      devices: of each process.
      cache: compiled programs, shared by runs of the same shape.
      first: flags in front, of another job than the usual one.
      bucket: MODEL_DIR, if it is not the folder.
    """
    self.folder = folder
    self.logs = [
      folder.with_name(f'{folder.name}.{i}.log') for i in range(processes)
    ]
    environment = os.environ | {
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    port = free_port()
    self.processes = []
    for index, log in enumerate(self.logs):
      command = [sys.executable, '-m', 'lora_opt.main', *first, *flags]
      command.append(f'--gin.MODEL_DIR={bucket or folder}')
      if processes > 1:
        command += [
          f'--coordinator_address=localhost:{port}',
          f'--process_count={processes}',
          f'--process_index={index}',
        ]
      with log.open('a', encoding='utf-8') as out:
        self.processes.append(
          subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        )

  def wait(self, timeout: float = 1200) -> list[int]:
    """Exit codes, once all have ended; none is left running."""
    deadline = time.monotonic() + timeout
    try:
      return [
        process.wait(max(0.1, deadline - time.monotonic()))
        for process in self.processes
      ]
    finally:
      for process in self.processes:
        process.kill()

  def end_well(self) -> None:
    codes = self.wait()
    assert set(codes) == {0}, self.text()

  def finish(self) -> bytes:
    """The exported adapter of a run that ends well."""
    self.end_well()
    return (self.folder / 'adapter/adapter_model.safetensors').read_bytes()

  def text(self) -> str:
    return '\n'.join(log.read_text(encoding='utf-8') for log in self.logs)

  def hold_at(self, step: int, index: int, timeout: float = 1200) -> None:
    """Stops process `index` once so many steps are logged."""
    deadline = time.monotonic() + timeout
    while steps_logged(self.folder) < step:
      ended = any(process.poll() is not None for process in self.processes)
      if ended or time.monotonic() > deadline:
        for process in self.processes:
          process.kill()
        raise AssertionError(self.text())
      time.sleep(0.001)
    self.processes[index].send_signal(signal.SIGSTOP)
    assert not (self.folder / 'adapter').exists(), 'it was too fast'


def steps_logged(folder: pathlib.Path) -> int:
  path = folder / 'metrics.jsonl'
  return (
    path.read_text(encoding='utf-8').count('"train"') if path.exists() else 0
  )


def free_port() -> int:
  with contextlib.closing(socket.socket()) as server:
    server.bind(('localhost', 0))
    return server.getsockname()[1]
