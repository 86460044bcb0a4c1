"""Counts the kernels of a GPU program, whose compiler estimates no cycles."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from lora_opt.planning.hlo import Instruction, called_by, parse, trip_count

# Instructions that launch nothing.
_NOTHING = frozenset(
  """
  after-all all-gather-done all-reduce-done async-done async-update bitcast
  call collective-permute-done conditional constant copy-done
  get-tuple-element parameter partition-id replica-id tuple while
  """.split()  # noqa: SIM905
)
_AS_A_WHOLE = ('fusion', 'async-start', 'custom-call')
# These read only as much of their first operand as they return.
_PARTS = ('dynamic-slice', 'gather', 'slice')


class Launches(NamedTuple):
  """The kernels of one run of a program.

  Attributes:
    kernels: Number of kernels that are started, including library calls.
    bytes: Bytes that they read and write. If a kernel reads or writes a slice
      of an array, only the slice counts.
  """

  kernels: int
  bytes: int


def launches(text: str) -> tuple[Launches, Launches]:
  """Counts kernels, with the cheapest and with the most expensive branches.

  Loop bodies count once per iteration.

  Args:
    text: `compiled.as_text()`.

  >>> body = '  %x = f32[8] parameter(0)\\n  %y = f32[8] add(%x, %x)\\n'
  >>> least, most = launches('ENTRY %main () {\\n' + body + '}')
  >>> least
  Launches(kernels=1, bytes=64)
  """
  entry, computations = parse(text)
  known: dict[str, tuple[Launches, Launches]] = {}

  def of_computation(name: str) -> tuple[Launches, Launches]:
    if name not in known:
      there = {each.name: each for each in computations[name]}
      each = [
        _of(instruction, there, computations, of_computation)
        for instruction in there.values()
      ]
      known[name] = _sum(least for least, _ in each), _sum(m for _, m in each)
    return known[name]

  return of_computation(entry)


def _of(
  instruction: Instruction,
  there: Mapping[str, Instruction],
  computations: Mapping[str, list[Instruction]],
  of_computation: Callable[[str], tuple[Launches, Launches]],
) -> tuple[Launches, Launches]:
  opcode = instruction.opcode
  own = Launches(0, 0)
  if opcode not in _NOTHING:
    own = Launches(1, _moved(instruction, there, computations))
  if opcode in _AS_A_WHOLE:
    return own, own
  inner = [of_computation(name) for name in called_by(instruction)]
  if opcode == 'conditional':
    least = min((each[0] for each in inner), key=lambda each: each.bytes)
    most = max((each[1] for each in inner), key=lambda each: each.bytes)
    return least, most
  times = trip_count(instruction, computations) if opcode == 'while' else 1
  least, most = (
    _sum([own, *(Launches(*(times * x for x in each[i])) for each in inner)])
    for i in range(2)
  )
  return least, most


def _moved(
  instruction: Instruction,
  there: Mapping[str, Instruction],
  computations: Mapping[str, list[Instruction]],
) -> int:
  """Bytes that a kernel reads and writes."""
  if instruction.opcode == 'fusion':
    (called,) = called_by(instruction)
    inside = {each.name: each for each in computations[called]}
    given = [e for e in inside.values() if e.opcode == 'parameter']
    *_, last = inside.values()
  else:
    names = dict.fromkeys(instruction.operand_names)
    given = [there[name] for name in names if name in there]
    inside = {each.name: each for each in (*given, instruction)}
    last = instruction
  return sum(_read(e, inside) for e in given) + _written(last, inside)


def _read(given: Instruction, inside: Mapping[str, Instruction]) -> int:
  """Bytes of an array that the instructions inside a kernel read."""
  taken = 0
  for each in inside.values():
    first = each.operand_names[:1] == (given.name,)
    if given.name not in each.operand_names:
      continue
    if each.opcode in _PARTS and first:
      taken += each.bytes
    elif each.opcode == 'dynamic-update-slice' and first:
      continue  # the rest stays where it is
    elif each.opcode == 'bitcast':
      taken += _read(each, inside)
    else:
      return given.bytes
  return min(taken, given.bytes)


def _written(last: Instruction, inside: Mapping[str, Instruction]) -> int:
  names = [name for name in last.operand_names if name in inside]
  if last.opcode in ('tuple', 'bitcast') and names:
    return sum(_written(inside[name], inside) for name in names)
  if last.opcode == 'dynamic-update-slice':
    return inside[last.operand_names[1]].bytes
  return last.bytes


def _sum(parts: Iterable[Launches]) -> Launches:
  parts = list(parts)
  return Launches(sum(p.kernels for p in parts), sum(p.bytes for p in parts))
