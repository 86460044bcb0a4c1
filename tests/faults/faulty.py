"""The run that faults are injected into: what its process does."""

import functools
import json
import os
import pathlib
import random
import resource
import signal
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

import lora_opt
from lora_opt.data import tasks
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.models import LoraConfig, random_model
from lora_opt.run_folder import checkpoint_files
from lora_opt.training.loop import train

STEPS, PERIOD, KEEP = 30, 2, 3
# Metrics and settings fit into this, a checkpoint does not.
FILE_LIMIT = 9000


class Fault(NamedTuple):
  """What goes wrong in one start of the run.

  Attributes:
    kind: kill, sigterm, disk and nan happen before step `step`; truncate, flip
      and remove strike a file of the newest checkpoint before the start, and
      then the run is killed like the others.
    step: that step.
    delay: seconds from there to a kill or signal.
    seed: of what else is drawn.
  """

  kind: str
  step: int
  delay: float
  seed: int


IN_FILES = ('truncate', 'flip', 'remove')
IN_RUN = ('kill', 'sigterm', 'disk', 'nan')


def run(folder: pathlib.Path, cache: pathlib.Path, fault: Fault | None) -> None:
  """One start of the run, in a process of its own; tells what it does.

  Lines of JSON on standard output: `there`, what the checkpoints are at the
  start; `struck`, the newest good step after a file was damaged; `fired`.

  Args:
    folder: MODEL_DIR.
    cache: compiled programs.
    fault: None for the reference, which keeps every step.
  """
  jax.config.update('jax_compilation_cache_dir', str(cache))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  tell(there=describe(folder))
  if fault and fault.kind in IN_FILES:
    damage_newest(folder, fault)
    there = describe(folder).items()
    good = [int(step) for step, (damage, _) in there if not damage]
    tell(fired=True, struck=max(good, default=0))
  rows = [{'question': f'Say {i}', 'answer': str(i)} for i in range(40)]
  task = tasks.Generation(name='say', train=rows, eval=rows[:1], chat=False)
  train(
    folder,
    random_model(LoraConfig(rank=2, dropout=0.1), num_layers=1, remat='none'),
    FaultyTask(task, fault),
    lora_opt.lora_rite(1e-2),
    train_steps=STEPS,
    task_feature_lengths={'targets': 64},
    batch_size=2,
    diagnostics=False,
    evaluator=functools.partial(Evaluator, max_new_tokens=1),
    checkpoint_period=PERIOD if fault else 1,
    keep_checkpoints=KEEP if fault else STEPS,
  )
  tell(there=describe(folder))


def tell(**what: Any) -> None:
  """One line, in one write: a kill cannot cut it."""
  os.write(1, (json.dumps(what) + '\n').encode())


def describe(folder: pathlib.Path) -> dict[str, tuple[str, Any]]:
  """For each checkpoint, by step: its damage, and its facts if it is sound."""
  found = {}
  for path in (folder / 'checkpoints').glob('step_*[0-9]'):
    damage = checkpoint_files.damage(path)
    facts = None if damage else checkpoint_files.read(path)[1]
    found[path.name.removeprefix('step_')] = (damage, facts)
  return found


def damage_newest(folder: pathlib.Path, fault: Fault) -> None:
  steps = list((folder / 'checkpoints').glob('step_*[0-9]'))
  newest = max(steps, key=lambda path: int(path.name.removeprefix('step_')))
  files = [p for p in sorted(newest.rglob('*')) if p.is_file()]
  draw = random.Random(fault.seed)
  path = draw.choice([p for p in files if p.stat().st_size])
  data = bytearray(path.read_bytes())
  place = draw.randrange(len(data))
  if fault.kind == 'remove':
    path.unlink()
  elif fault.kind == 'truncate':
    path.write_bytes(data[:place])
  else:
    data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


class FaultyTask:
  """A task whose training data are where the fault happens."""

  def __init__(self, task: tasks.Task, fault: Fault | None):
    self._task, self._fault = task, fault

  def __getattr__(self, name: str) -> Any:
    return getattr(self._task, name)

  def train_batches(self, *args, **kwargs) -> 'FaultyData':
    data = self._task.train_batches(*args, **kwargs)
    return FaultyData(data, kwargs['batch_size'], self._fault)


class FaultyData:
  """Batches, and what goes wrong when one is asked for."""

  def __init__(self, data: Any, batch_size: int, fault: Fault | None):
    self._data, self._batch_size, self._fault = data, batch_size, fault
    self.summary = data.summary

  def __iter__(self) -> 'FaultyData':
    self._iterator, self._step = iter(self._data), 0
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._iterator)
    self._step += 1
    if self._fault and self._step == self._fault.step:
      return self._inject(batch)
    return batch

  def get_state(self) -> dict[str, Any]:
    return {'step': self._step, 'inner': self._iterator.get_state()}

  def set_state(self, state: dict[str, Any]) -> None:
    self._step = state['step']
    self._iterator.set_state(state['inner'])

  def close(self) -> None:
    self._iterator.close()

  def _inject(self, batch):
    kind, _, delay, _ = self._fault
    if kind in ('kill', 'sigterm', *IN_FILES):
      number = signal.SIGTERM if kind == 'sigterm' else signal.SIGKILL

      def strike():
        tell(fired=True)
        os.kill(os.getpid(), number)

      threading.Timer(delay, strike).start()
    elif kind == 'disk':
      tell(fired=True)
      _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, hard))
    elif kind == 'nan':
      tell(fired=True)
      batch = batch | {'weights': batch['weights'] * np.float32('nan')}
    return batch
