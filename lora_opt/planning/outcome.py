"""What a plan has found out."""

import dataclasses
from collections.abc import Mapping

from lora_opt.planning.chips import Topology
from lora_opt.planning.program import Program
from lora_opt.planning.search import Tried
from lora_opt.planning.targets import Target
from lora_opt.planning.timing import StepTime


@dataclasses.dataclass(frozen=True)
class Plan:
  """A training step on hardware that is not here.

  Attributes:
    command: Command line that repeats it.
    model: The model's name.
    parameters: Frozen and trained scalars.
    topology: The devices.
    target: What was compiled for.
    mesh: Devices along each axis.
    batch: Arrays of a batch: name -> sizes.
    tokens: Positions of a batch, padding included; or its images.
    unit: Which of the two.
    usable: Bytes of a device that may be used.
    program: The compiled step.
    time: Of a step; None for a chip without published speeds.
    tried: Meshes that were looked at for the smallest that fits.
  """

  command: str
  model: str
  parameters: tuple[int, int]
  topology: Topology
  target: Target
  mesh: Mapping[str, int]
  batch: Mapping[str, tuple[int, ...]]
  tokens: int
  unit: str
  usable: float
  program: Program
  time: StepTime | None
  tried: tuple[Tried, ...]

  @property
  def fits(self) -> bool:
    """Whether a step needs no more than may be used."""
    return self.program.total <= self.usable

  @property
  def smallest(self) -> Tried | None:
    """The smallest mesh that was found to fit."""
    for each in self.tried:
      if each.program is not None and each.program.total <= self.usable:
        return each
    return None
