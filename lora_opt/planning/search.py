"""The smallest mesh on which a job fits."""

from collections.abc import Iterator
from typing import NamedTuple

from lora_opt.planning.program import Job, Program, compile_step, describe
from lora_opt.training.partitioning import Partitioner, Rules


class Tried(NamedTuple):
  """A mesh that was looked at.

  Attributes:
    fsdp, tensor: Its devices along these axes; there are none along data.
    held: Bytes that a device holds before the step.
    program: The compiled step, or None where what is held is too much already.
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
  devices: int,
  memory: float,
  *,
  rules: Rules,
  native_bfloat16: bool,
) -> Iterator[Tried]:
  """Looks at meshes of 1, 2, 4, ... devices; the last one fits, if any does.

  On so many devices the mesh that splits weights as far as it goes is tried:
  `fsdp` over as many as share the rows of a batch, `tensor` over the rest. What
  a device holds before the step follows from shapes; only where that fits is
  the step compiled.

  Args:
    job: What is trained.
    devices: At most so many.
    memory: Bytes of a device that may be used.
    rules: Of the partitioner.
    native_bfloat16: See `compile_step`.
  """
  for fsdp, tensor in candidates(job, devices):
    shapes = describe(job, Partitioner(1, fsdp, tensor, rules), fsdp * tensor)
    held = sum(shapes.held().values())
    program = None
    if held <= memory:
      program = compile_step(job, shapes, native_bfloat16)
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
