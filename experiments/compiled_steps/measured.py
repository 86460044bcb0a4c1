"""Reads what the compiler reports about a step, the same way on both sides."""

import json
import pathlib
import re
import sys
import time
from collections import Counter
from typing import Any

import jax

from experiments.compiled_optimizers.kernels import launches
from lora_opt.planning.costs import costs
from lora_opt.planning.cycles import cycles
from lora_opt.planning.hlo import executed
from lora_opt.planning.operations import product_flops
from lora_opt.planning.targets import Target, compiling_for

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_INDEX = re.compile(r'\b(layers|layer)[_/](\d+)')


def measure(
  traced: jax.stages.Traced | Any, target: Target, dump: str | None
) -> dict:
  """Lowers and compiles a traced step, and reads what it needs.

  Args:
    traced: Has `jaxpr` and `lower()`.
    target: The devices to compile for.
    dump: File to write the compiled program to, as text; None for no file.
  """
  devices = len(target.devices)
  with compiling_for(target):
    lowered = traced.lower()
    print('lowered', file=sys.stderr, flush=True)
    start = time.monotonic()
    compiled = lowered.compile()
  seconds = time.monotonic() - start
  text, stats = compiled.as_text(), compiled.memory_analysis()
  if dump:
    pathlib.Path(dump).write_text(text, encoding='utf-8')
  flops = product_flops(traced.jaxpr) / devices
  found = costs(text, devices, flops)
  total = cycles(text)
  return {
    'compiler': target.compiler,
    'compile_seconds': round(seconds, 1),
    'peak_bytes': stats.peak_memory_in_bytes,
    'argument_bytes': stats.argument_size_in_bytes,
    'temporary_bytes': stats.temp_size_in_bytes,
    'flops': flops,
    'cycles': total and total._asdict(),
    # For GPUs, whose compiler estimates no cycles; most expensive branches.
    'launches': None if total else launches(text)[1]._asdict(),
    'collectives': collectives(found.collectives),
    'profile': profile(text),
  }


def collectives(found) -> dict[str, dict]:
  """Kind -> number of executions, bytes of results, bytes sent by a device."""
  sums: dict[str, Counter] = {}
  for each in found:
    row = sums.setdefault(each.kind, Counter())
    row['times'] += each.times
    row['bytes'] += each.times * each.bytes
    row['sent'] += each.sent
  return {kind: dict(row) for kind, row in sorted(sums.items())}


def profile(text: str, largest: int = 40) -> list[dict]:
  """Sums the cycles of operations by origin, and returns the largest sums."""
  sums: dict[str, Counter] = {}
  for instruction, times, _ in executed(text):
    found = _ESTIMATE.search(instruction.attributes)
    if not found:
      continue
    name = _INDEX.sub(r'\1', instruction.op_name) or instruction.opcode
    row = sums.setdefault(name, Counter())
    row['cycles'] += times * int(found[1])
    row['times'] += times
  rows = sorted(sums.items(), key=lambda item: -item[1]['cycles'])
  return [{'origin': name, **row} for name, row in rows[:largest]]


def report(found: dict) -> None:
  """Prints the result as the process's last line, which `run.py` reads."""
  print(json.dumps(found))
