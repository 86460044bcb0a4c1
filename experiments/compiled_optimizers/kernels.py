"""What a program for GPUs launches, whose compiler estimates no cycles."""

from collections.abc import Mapping
from typing import NamedTuple

from lora_opt.planning.hlo import Instruction, called_by, parse, trip_count

# Instructions at which nothing runs.
_NOTHING = frozenset(
  """
  after-all all-gather-done all-reduce-done async-done async-update bitcast
  call collective-permute-done conditional constant copy-done
  get-tuple-element parameter partition-id replica-id tuple while
  """.split()  # noqa: SIM905
)
_AS_A_WHOLE = ('fusion', 'async-start', 'custom-call')


class Launches(NamedTuple):
  """Of a run of a program.

  Attributes:
    kernels: How many are started, calls of libraries among them.
    bytes: Of their operands and results, each whole.
  """

  kernels: int
  bytes: int


def launches(text: str) -> tuple[Launches, Launches]:
  """Loops as often as they run; of each choice the cheaper, the dearer branch.

  Args:
    text: `compiled.as_text()`.

  >>> body = '  %x = f32[8] parameter(0)\\n  %y = f32[8] add(%x, %x)\\n'
  >>> least, most = launches('ENTRY %main () {\\n' + body + '}')
  >>> least
  Launches(kernels=1, bytes=96)
  """
  entry, computations = parse(text)
  known: dict[str, tuple[Launches, Launches]] = {}

  def of_computation(name: str) -> tuple[Launches, Launches]:
    if name not in known:
      each = [_of(i, computations, of_computation) for i in computations[name]]
      known[name] = _sum(least for least, _ in each), _sum(m for _, m in each)
    return known[name]

  return of_computation(entry)


def _of(
  instruction: Instruction,
  computations: Mapping[str, list[Instruction]],
  of_computation,
) -> tuple[Launches, Launches]:
  opcode = instruction.opcode
  own = Launches(0, 0)
  if opcode not in _NOTHING:
    moved = instruction.bytes + sum(x.bytes for x in instruction.operands)
    own = Launches(1, moved)
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


def _sum(parts) -> Launches:
  parts = list(parts)
  return Launches(sum(p.kernels for p in parts), sum(p.bytes for p in parts))
