"""Injects faults into a small run and holds it to what it promises.

A reference run, never disturbed, keeps a checkpoint of every step. Another run
is started again and again, each time with a fault: killed, told to stop, its
disk refusing to write, its batch not a number, or a file of its newest
checkpoint damaged. After each start, whatever happened:

  every checkpoint that is there is that of the reference, bit for bit;
  no finished checkpoint is lost but to newer ones, or to damage done to it;
  the next start goes on from the newest good one.

A run that gets to its end must leave the adapter of the reference.
"""

import json
import os
import pathlib
import random
import re
import shutil
import traceback
import warnings
from typing import NamedTuple

from lora_opt.training.stopping import EXIT
from tests.faults.faulty import IN_FILES, IN_RUN, KEEP, STEPS, Fault, run

ADAPTER = 'adapter/adapter_model.safetensors'


class Attempt(NamedTuple):
  """One start: what went wrong, and how it ended."""

  fault: Fault
  fired: bool  # False where the run was over before
  code: int  # of the exit, negative for a signal
  first: int  # the step it went on from
  last: int  # newest checkpoint afterwards


class Harness:
  """The reference, and the run that is disturbed."""

  def __init__(self, folder: pathlib.Path, seed: int):
    """Trains the reference."""
    self._folder, self._draw = folder, random.Random(seed)
    self.finished = 0
    code, text = self._start('reference', None)
    assert code == 0, text
    there = told(text)[-1]['there']
    assert set(there) == {str(step) for step in range(1, STEPS + 1)}, text
    self._facts = {int(step): facts for step, (_, facts) in there.items()}
    self._adapter = (folder / 'reference' / ADAPTER).read_bytes()
    self._run = folder / 'run'

  def attempt(self) -> Attempt:
    """Starts the run once more, with a fault, and checks everything."""
    before = complete(self._run)
    fault = self._next_fault(max(before, default=0))
    code, text = self._start('run', fault)
    lines = told(text)
    for step, (damage, facts) in lines[0]['there'].items():
      assert not damage, (step, damage, text)
      assert facts == self._facts[int(step)], (step, text)
    assert set(map(int, lines[0]['there'])) == before, text

    # It goes on from the newest good checkpoint.
    good = next((x['struck'] for x in lines if 'struck' in x), None)
    good = max(before, default=0) if good is None else good
    said = re.search(r'Going on from step (\d+)', text)
    assert (int(said[1]) if said else 0) == good, (fault, good, text)
    if good < max(before, default=0):
      assert 'is damaged' in text, text

    # Nothing is lost but to newer checkpoints or to the damage.
    after = complete(self._run)
    for step in before:
      newer = sum(other > step for other in after)
      assert step in after or step > good or newer >= KEEP, (fault, text)

    fired = any('fired' in line for line in lines)
    if (self._run / ADAPTER).exists():
      assert (self._run / ADAPTER).read_bytes() == self._adapter, fault
      assert code in (0, -9), text
      self.finished += 1
      shutil.rmtree(self._run)
    elif fired and fault.kind in ('disk', 'nan'):
      assert code == 1, (fault, text)
    elif fired and fault.kind == 'sigterm':
      assert code in (EXIT, -15), (fault, text)
    return Attempt(fault, fired, code, good, max(after, default=0))

  def finish(self) -> None:
    """Lets the run come to its end, undisturbed."""
    if self._run.exists():
      code, text = self._start('run', Fault('none', 0, 0.0, 0))
      assert code == 0, text
      assert (self._run / ADAPTER).read_bytes() == self._adapter
      self.finished += 1

  def _next_fault(self, newest: int) -> Fault:
    draw = self._draw
    kinds = IN_RUN + IN_FILES if newest else IN_RUN
    return Fault(
      draw.choice(kinds),
      newest + draw.randint(1, 6),
      draw.uniform(0, 0.05),
      draw.randrange(2**31),
    )

  def _start(self, name: str, fault: Fault | None) -> tuple[int, str]:
    """Runs in a fork, which need not import everything again."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
      # JAX warns of its threads, and has started none in this process.
      warnings.simplefilter('ignore')
      child = os.fork()
    if not child:
      _in_child(writer, self._folder / name, self._folder / 'cache', fault)
    os.close(writer)
    with os.fdopen(reader, encoding='utf-8', errors='replace') as pipe:
      text = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


def _in_child(writer, folder, cache, fault):
  code = 1
  try:
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    run(folder, cache, fault)
    code = 0
  except SystemExit as stop:
    code = stop.code or 0
  except BaseException:
    os.write(2, traceback.format_exc().encode())
  finally:
    os._exit(code)


def told(text: str) -> list[dict]:
  """The lines of JSON among what a process wrote."""
  return [json.loads(x) for x in text.splitlines() if x.startswith('{')]


def complete(folder: pathlib.Path) -> set[int]:
  """The steps whose checkpoints are there under their final name."""
  paths = (folder / 'checkpoints').glob('step_*[0-9]')
  return {int(path.name.removeprefix('step_')) for path in paths}
