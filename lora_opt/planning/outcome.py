"""The result of a plan."""

import dataclasses
from collections.abc import Mapping

from lora_opt.planning.chips import Topology
from lora_opt.planning.program import Program
from lora_opt.planning.search import Tried
from lora_opt.planning.targets import Target
from lora_opt.planning.timing import StepTime


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a training step needs on hardware that is not at hand.

  Attributes:
    command: Command line that repeats the plan.
    model: The model's name.
    parameters: Number of frozen and of trained scalars.
    topology: The devices.
    target: The devices that the step was compiled for, and their compiler.
    mesh: Number of devices along each axis.
    batch: Arrays of a batch: name -> shape.
    tokens: Number of tokens in a batch, padding included, or of images.
    unit: 'tokens' or 'images'.
    usable: Bytes of a device's memory that may be used.
    program: The compiled step.
    time: Time of a step; None for a chip without published speeds.
    tried: Meshes examined in the search for the smallest one that fits.
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
    """Whether a step needs no more than the usable memory."""
    return self.program.total <= self.usable

  @property
  def smallest(self) -> Tried | None:
    """The smallest mesh that was found to fit."""
    for each in self.tried:
      if each.program is not None and each.program.total <= self.usable:
        return each
    return None
