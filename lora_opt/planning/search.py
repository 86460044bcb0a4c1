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
  """A mesh that the search has examined.

  Attributes:
    fsdp, tensor: Number of devices along these axes; along data it is 1.
    held: Bytes that a device holds before the step.
    program: The compiled step. None if `held` is already too much, or if the
      compiler reports that the step needs too much.
  """

  fsdp: int
  tensor: int
  held: int
  program: Program | None

  @property
  def devices(self) -> int:
    """Number of devices in the mesh."""
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
  """Tries meshes of 1, 2, 4, ... devices; the last one fits, if any does.

  For each number of devices, the mesh that splits the weights the most is
  tried: `fsdp` spans as many devices as divide the rows of a batch evenly,
  `tensor` the rest. What a device holds before the step follows from the
  shapes. The step is compiled only if that fits.

  Args:
    job: What is trained.
    topology: One slice of it is searched, one device at least.
    memory: Bytes of a device that may be used.
    rules: The rules of the partitioner.
    native_bfloat16: See `compile_step`.
    known: Programs that are already compiled, by their mesh (data, fsdp,
      tensor) of all devices; None for one that the compiler refused.

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
  """Yields the devices along fsdp and tensor, for 1, 2, 4, ... devices."""
  (rows,) = {len(part) for part in job.batch.values()}
  rows //= job.settings.get('microbatches', 1)
  count = 1
  while count <= devices:
    fsdp = max(n for n in _powers(count) if rows % n == 0)
    yield fsdp, count // fsdp
    count *= 2


def _powers(count: int) -> list[int]:
  return [1 << n for n in range(count.bit_length())]
