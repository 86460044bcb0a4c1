"""The cycles that the TPU compiler expects a program to take.

Every fusion carries an estimate. Estimates repeat to the digit, so two programs
can be compared without the hardware. They do not include kernels (custom calls)
or waiting for other devices.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from lora_opt.planning.hlo import Instruction, called_by, parse, trip_count

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Custom calls that are notes to the compiler and cost nothing themselves.
_NOTES = frozenset(
  """
  AllocateBuffer AssumeGatherIndicesInBound AsyncCollectiveDone
  AsyncCollectiveStart ConcatBitcast GatherScatterIndicesBitpacked Sharding
  SPMDFullToShardShape SPMDShardToFullShape SliceId ZeroCrop
  """.split()  # noqa: SIM905
)


class Cycles(NamedTuple):
  """The expected cycles of one run of a program.

  Attributes:
    least: Sum with every iteration of loops and the cheapest branch of each
      conditional.
    most: The same with the most expensive branches.
    uncounted: Custom calls that neither sum includes: target -> number of
      executions.
  """

  least: int
  most: int
  uncounted: Mapping[str, int]


def cycles(text: str) -> Cycles | None:
  """Adds up the estimates; returns None if the compiler gives none.

  Args:
    text: `compiled.as_text()`.
  """
  if not _ESTIMATE.search(text):
    return None
  entry, computations = parse(text)
  known: dict[str, Cycles] = {}

  def of_computation(name: str) -> Cycles:
    if name not in known:
      known[name] = _sum(of_instruction(i) for i in computations[name])
    return known[name]

  def of_instruction(instruction: Instruction) -> Cycles:
    own = _own(instruction)
    opcode = instruction.opcode
    if opcode in ('fusion', 'async-start'):  # the estimate covers all of it
      return own
    inner = [of_computation(name) for name in called_by(instruction)]
    if opcode == 'while':
      times = trip_count(instruction, computations)
      return _sum([own, *(_times(each, times) for each in inner)])
    if opcode == 'conditional' and inner:
      least, most = (
        pick(inner, key=lambda each, i=i: each[i])
        for i, pick in enumerate((min, max))
      )
      branch = Cycles(least.least, most.most, most.uncounted)
      return _sum([own, branch])
    return _sum([own, *inner])

  return of_computation(entry)


def _own(instruction: Instruction) -> Cycles:
  found = _ESTIMATE.search(instruction.attributes)
  number = int(found[1]) if found else 0
  uncounted = Counter()
  if instruction.opcode == 'custom-call':
    target = _TARGET.search(instruction.attributes)
    if target and target[1] not in _NOTES:
      uncounted[target[1]] += 1
  return Cycles(number, number, uncounted)


def _times(each: Cycles, times: int) -> Cycles:
  counts = Counter({name: n * times for name, n in each.uncounted.items()})
  return Cycles(each.least * times, each.most * times, counts)


def _sum(parts) -> Cycles:
  least, most, uncounted = 0, 0, Counter()
  for each in parts:
    least += each.least
    most += each.most
    uncounted.update(each.uncounted)
  return Cycles(least, most, uncounted)
