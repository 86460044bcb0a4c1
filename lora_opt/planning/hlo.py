"""Reads the text of a compiled program: instructions and how often each runs.

XLA's own cost analysis counts the body of a loop once. But a model is a loop
over its layers, and most of the work is in its body. So here every instruction
comes with the product of the trip counts of all loops around it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BITS = re.compile(r'[a-z]+(\d+)')
_SHAPE = re.compile(r'([a-z]+\d*\w*)\[([\d,]*)\]')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'\s*([a-z][\w\-]*)\(')
_NAME = re.compile(r'%([\w.\-]+)')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r'^[su]\d+\[\][^ ]* constant\((\d+)\)')
_INDEX = re.compile(r'index=(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# Attributes that name computations which run when the instruction does. The
# scalar function of a reduction (to_apply) is ignored.
_CALLED = {
  'while': re.compile(r'(?:body|condition)=%?([\w.\-]+)'),
  'fusion': re.compile(r'calls=%?([\w.\-]+)'),
  'call': re.compile(r'to_apply=%?([\w.\-]+)'),
  'conditional': re.compile(
    r'branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,]+)'
  ),
  'custom-call': re.compile(r'called_computations=\{([^}]*)\}'),
  'async-start': re.compile(r'(?:calls|called_computation)=%?([\w.\-]+)'),
}


class Shape(NamedTuple):
  """Type and sizes of an array."""

  dtype: str
  sizes: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """Size of the array in bytes; 0 for a token."""
    if self.dtype == 'pred':
      bits = 8
    else:
      match = _BITS.match(self.dtype)
      bits = int(match[1]) if match else 0
    return math.prod(self.sizes) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a computation.

  Attributes:
    name: Unique in the program.
    opcode: Such as 'dot' or 'all-gather'.
    results: Shapes of its results; several for a tuple.
    operands: Shapes of the operands that are arrays.
    operand_names: Names of all operands.
    attributes: The rest of its line in the text.
    value: Value of an integer constant; None for everything else.
  """

  name: str
  opcode: str
  results: tuple[Shape, ...]
  operands: tuple[Shape, ...]
  operand_names: tuple[str, ...]
  attributes: str
  value: int | None = None

  @property
  def bytes(self) -> int:
    """Size of all results in bytes."""
    return sum(shape.bytes for shape in self.results)

  @property
  def op_name(self) -> str:
    """Where in the Python program it came from; '' if unknown."""
    match = _OP_NAME.search(self.attributes)
    return match[1] if match else ''


class Executed(NamedTuple):
  """An instruction, and how often a run of the program executes it."""

  instruction: Instruction
  times: int
  trips: int  # trip count of the innermost loop around it; 1 outside of loops


def executed(text: str) -> Iterator[Executed]:
  """Yields every instruction that a run executes, with the number of times.

  All branches of a conditional count. A loop with an unknown trip count counts
  as one iteration. (The TPU compiler does not record trip counts. They are then
  found by the only number that the loop's condition compares with.)

  Args:
    text: `compiled.as_text()`.
  """
  entry, computations = parse(text)

  def walk(name, times, trips):
    for instruction in computations[name]:
      yield Executed(instruction, times, trips)
      opcode, inner = instruction.opcode, trips
      if opcode == 'while':
        inner = trip_count(instruction, computations)
      for called in called_by(instruction):
        repeats = times * inner if opcode == 'while' else times
        yield from walk(called, repeats, inner)

  yield from walk(entry, 1, 1)


def trip_count(
  loop: Instruction, computations: Mapping[str, list[Instruction]]
) -> int:
  """How often the body of a loop runs; 1 if unknown.

  If the trip count is not recorded, it is the only number that the condition
  compares with, divided by the counter's increment. The increment is 2 in
  windowed products, where TPUs multiply the part of an array that they have
  while other parts arrive.
  """
  if match := _TRIP_COUNT.search(loop.attributes):
    return int(match[1])
  named = {
    part: re.search(rf'{part}=%?([\w.\-]+)', loop.attributes)
    for part in ('condition', 'body')
  }
  condition, body = (
    computations.get(match[1], []) if match else [] for match in named.values()
  )
  numbers = {each.value for each in condition if each.value is not None}
  if len(numbers) != 1:
    return 1
  return max(math.ceil(numbers.pop() / _step(condition, body)), 1)


def _step(condition: list[Instruction], body: list[Instruction]) -> int:
  """The increment of a loop's counter per iteration; 1 if unknown."""
  counters = {
    match[1]
    for each in condition
    if each.opcode == 'get-tuple-element'
    and (match := _INDEX.search(each.attributes))
  }
  if len(counters) != 1 or not body or body[-1].opcode != 'tuple':
    return 1
  (index,) = counters
  known = {each.name: each for each in body}
  each, step = known.get(body[-1].operand_names[int(index)]), 0
  while each is not None and each.opcode in ('add', 'copy'):
    operands = [known.get(name) for name in each.operand_names]
    constants = [o.value for o in operands if o and o.value is not None]
    step += sum(constants)
    others = [o for o in operands if o and o.value is None]
    each = others[0] if len(others) == 1 else None
  if each is None or each.opcode != 'get-tuple-element':
    return 1
  same = _INDEX.search(each.attributes)[1] == index
  return max(step, 1) if same else 1


def parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
  """Returns the entry computation's name and all computations' instructions."""
  entry, computations, lines = '', {}, []
  for line in text.splitlines():
    if head := _HEAD.match(line):
      lines = computations[head[2]] = []
      entry = head[2] if head[1] else entry
    elif match := _INSTRUCTION.match(line):
      lines.append(match.groups())
  return entry, {
    name: _instructions(lines) for name, lines in computations.items()
  }


def _instructions(lines: list[tuple[str, str]]) -> list[Instruction]:
  known: dict[str, tuple[Shape, ...]] = {}
  found = []
  for name, line in lines:
    end = _end_of_type(line)
    results = _shapes(line[:end])
    opcode = _OPCODE.match(line, end)
    close = _closing(line, opcode.end() - 1)
    operands = tuple(_NAME.findall(line[opcode.end() : close]))
    shapes = [known.get(operand, ()) for operand in operands]
    known[name] = results
    found.append(
      Instruction(
        name,
        opcode[1],
        results,
        tuple(shape[0] for shape in shapes if len(shape) == 1),
        operands,
        line[close + 1 :],
        int(constant[1]) if (constant := _CONSTANT.match(line)) else None,
      )
    )
  return found


def _shapes(text: str) -> tuple[Shape, ...]:
  return tuple(
    Shape(dtype, tuple(int(size) for size in sizes.split(',') if size))
    for dtype, sizes in _SHAPE.findall(text)
  )


def _end_of_type(line: str) -> int:
  return _closing(line, 0) + 1 if line.startswith('(') else line.index(' ')


def _closing(line: str, start: int) -> int:
  """Index of the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.finditer(r'[()]', line[start:]):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return start + match.start()
  raise ValueError(f'unbalanced parentheses: {line[start : start + 60]}')


def called_by(instruction: Instruction) -> Iterator[str]:
  """Names of the computations that run when an instruction does."""
  pattern = _CALLED.get(instruction.opcode)
  for match in pattern.finditer(instruction.attributes) if pattern else ():
    names = match[match.lastindex].split(',')
    yield from (name.strip(' %') for name in names if name.strip())
