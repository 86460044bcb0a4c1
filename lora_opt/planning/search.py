"""The smallest mesh on which a job fits."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lora_opt.devices.partitioning import Partitioner, Rules
from lora_opt.planning.chips import Topology
from lora_opt.planning.program import (
  DoesNotFitError,
  Job,
  Program,
  compile_step,
  describe,
)
from lora_opt.planning.targets import find_target


class Tried(NamedTuple):
  """A mesh that was looked at.

  Attributes:
    fsdp, tensor: Its devices along these axes; there are none along data.
    held: Bytes that a device holds before the step.
    program: The compiled step, or None where what is held is too much already,
      or the compiler says that the step is.
  """

  fsdp: int
  tensor: int
  held: int
  program: Program | None

  @property
  def devices(self) -> int:
    """Of the mesh."""
    return self.fsdp * self.tensor


def smallest_mesh(
  job: Job,
  topology: Topology,
  memory: float,
  *,
  rules: Rules,
  native_bfloat16: bool,
  known: Mapping[tuple[int, int, int], Program | None],
) -> Iterator[Tried]:
  """Looks at meshes of 1, 2, 4, ... devices; the last one fits, if any does.

  On so many devices the mesh that splits weights as far as it goes is tried:
  `fsdp` over as many as share the rows of a batch, `tensor` over the rest. What
  a device holds before the step follows from shapes; only where that fits is
  the step compiled.

  Args:
    job: What is trained.
    topology: At most all of its devices.
    memory: Bytes of a device that may be used.
    rules: Of the partitioner.
    native_bfloat16: See `compile_step`.
    known: Programs of meshes of all devices, by (data, fsdp, tensor), that are
      not compiled again; None for one that the compiler refused.

  Raises:
    ValueError: See `find_target`.
  """
  for fsdp, tensor in candidates(job, topology.devices // topology.slices):
    target = find_target(topology, fsdp * tensor)
    mesh = Partitioner(1, fsdp, tensor, rules)
    shapes = describe(job, mesh, target.devices)
    held = sum(shapes.held().values())
    program = known.get((1, fsdp, tensor))
    if held <= memory and (1, fsdp, tensor) not in known:
      with contextlib.suppress(DoesNotFitError):
        program = compile_step(job, shapes, target, native_bfloat16)
    yield Tried(fsdp, tensor, held, program)
    if program is not None and program.total <= memory:
      return


def candidates(job: Job, devices: int) -> Iterator[tuple[int, int]]:
  """Devices along fsdp and tensor, for 1, 2, 4, ... devices."""
  (rows,) = {len(part) for part in job.batch.values()}
  rows //= job.settings.get('microbatches', 1)
  count = 1
  while count <= devices:
    fsdp = max(n for n in _powers(count) if rows % n == 0)
    yield fsdp, count // fsdp
    count *= 2


def _powers(count: int) -> list[int]:
  return [1 << n for n in range(count.bit_length())]
