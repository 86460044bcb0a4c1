"""The work of one device in one run of a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from lora_opt.planning.groups import device_groups
from lora_opt.planning.hlo import Executed, Instruction, executed

# Bytes that each of n devices sends (and receives) in a ring, as a multiple of
# the bytes of the result; for reduce-scatter, of the operand.
_SENT = {
  'all-gather': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1.0,
  'collective-broadcast': lambda n: 1.0,
}
_CHANNEL = re.compile(r'channel_id=(\d+)')
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# `jax.named_scope` of the optimizer in the training step.
_OPTIMIZER = 'optimizer/'


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of the program.

  Attributes:
    kind: Such as 'all-gather'.
    bytes: Size of its result (for a reduce-scatter, of its operand) per
      execution.
    elements: Number of elements of its largest array.
    times: How often one run executes it.
    groups: Groups of devices that communicate, as positions in the mesh.
    op_name: Where in the Python program it came from.
  """

  kind: str
  bytes: int
  elements: int
  times: int
  groups: Sequence[Sequence[int]]
  op_name: str

  @property
  def sent(self) -> float:
    """Bytes that each device sends in one run, in a ring."""
    return self.times * self.bytes * _SENT[self.kind](len(self.groups[0]))

  @property
  def optimizer(self) -> bool:
    """Whether it belongs to the optimizer rather than to the model."""
    return _OPTIMIZER in self.op_name

  def leaves(self, island: int) -> bool:
    """Whether it crosses islands of this many consecutive devices."""
    return any(len({d // island for d in group}) > 1 for group in self.groups)


@dataclasses.dataclass(frozen=True)
class Costs:
  """The work of one device in one run.

  Attributes:
    flops: Operations of matrix products, two for each multiply-add.
    product_bytes: Bytes that those products read and write.
    kept_bytes: Bytes that the forward pass of a loop over layers stacks up for
      the backward pass.
    collectives: Collectives that involve more than one device.
  """

  flops: float
  product_bytes: float
  kept_bytes: int
  collectives: tuple[Collective, ...]


def costs(text: str, devices: int, flops: float, width: int = 1) -> Costs:
  """Counts the costs of a program; loop bodies count once per iteration.

  Args:
    text: `compiled.as_text()`.
    devices: Number of devices in the mesh.
    flops: Operations of one device, see `lora_opt.planning.operations`.
    width: How many times wider its types are than those of the original
      program, see `lora_opt.planning.widen`.
  """
  instructions = list(executed(text))
  products = [e for e in instructions if _is_product(e.instruction)]
  return Costs(
    flops=flops,
    product_bytes=sum(e.times * _touched(e.instruction) for e in products)
    / width,
    kept_bytes=sum(_kept(instructions)) // width,
    collectives=tuple(_collectives(instructions, devices, width)),
  )


def _is_product(instruction: Instruction) -> bool:
  """Matrix products are convolutions on TPUs and cuBLAS calls on GPUs."""
  if instruction.opcode == 'custom-call':
    return '"__cublas$' in instruction.attributes
  return instruction.opcode in ('dot', 'convolution')


def _touched(dot: Instruction) -> int:
  return dot.bytes + sum(operand.bytes for operand in dot.operands)


def _kept(instructions: Iterable[Executed]) -> Iterable[int]:
  """Yields the bytes of each array that a forward-pass loop fills by slices."""
  for instruction, _, trips in instructions:
    if instruction.opcode != 'dynamic-update-slice' or trips == 1:
      continue
    sizes = instruction.results[0].sizes
    backward = 'transpose(' in instruction.op_name
    if sizes and sizes[0] == trips and not backward:
      yield instruction.bytes


def _collectives(
  instructions: Iterable[Executed], devices: int, width: int
) -> Iterable[Collective]:
  seen = set()
  for instruction, times, _ in instructions:
    if instruction.opcode == 'send':
      yield from _between_slices(instruction, devices, times)
      continue
    kind = instruction.opcode.removesuffix('-start')
    if kind not in _SENT:
      continue
    # TPUs split one collective over several fusions, each of which contains it.
    channel = _CHANNEL.search(instruction.attributes)
    if channel and (channel[1], times) in seen:
      continue
    seen.add(channel and (channel[1], times))
    groups = device_groups(instruction.attributes, devices)
    if len(groups[0]) == 1:
      continue
    arrays = instruction.results
    if kind == 'reduce-scatter':
      arrays = instruction.operands
    yield Collective(
      kind,
      bytes=sum(shape.bytes for shape in arrays) // width,
      elements=max(math.prod(shape.sizes) for shape in arrays),
      times=times,
      groups=groups,
      op_name=instruction.op_name,
    )


def _between_slices(
  send: Instruction, devices: int, times: int
) -> Iterator[Collective]:
  """Yields the collective of devices at the same position in each slice."""
  kind = _BETWEEN.search(send.attributes)
  if not kind:
    return
  first = re.search(r'_xla_megascale_target="\{([^}]*)\}', send.attributes)
  slices = sum(
    int(last or first) - int(first) + 1
    for first, last in re.findall(r'(\d+)(?::(\d+))?', first[1])
  )
  each = devices // slices
  (sent, *_) = send.results
  yield Collective(
    kind[1].lower().replace('_', '-'),
    bytes=sent.bytes,
    elements=math.prod(sent.sizes),
    times=times,
    groups=[list(range(place, devices, each)) for place in range(each)],
    op_name=send.op_name,
  )
