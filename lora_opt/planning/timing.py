"""How long a step should take: a roofline with explicit assumptions."""

import dataclasses

from lora_opt.planning.chips import Chip
from lora_opt.planning.costs import Collective, Costs


@dataclasses.dataclass(frozen=True)
class Utilisation:
  """The share of each peak that is assumed to be reached.

  There is no guarantee. These are shares that well-tuned training of large
  models reports; small matrices, long attention and few rows reach less.

  Attributes:
    compute: Share of the operations per second.
    memory: Share of the memory bandwidth.
    network: Share of the bandwidth of all links. A collective along one axis of
      the mesh seldom uses all of them.

  Raises:
    ValueError: A share is outside (0, 1].
  """

  compute: float = 0.5
  memory: float = 0.7
  network: float = 0.5

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not 0 < value <= 1:
        raise ValueError(
          f'utilisation: {field.name}={value} must be above 0 and at most 1'
        )


ASSUMED = Utilisation()


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds that the parts of a step take, each by itself.

  Attributes:
    compute: Time of the matrix products.
    memory: Time to read and write the arrays of these products.
    network: Time of the collectives.
  """

  compute: float
  memory: float
  network: float

  @property
  def hidden(self) -> float:
    """Time of a step if the collectives run while the device computes."""
    return max(self.compute, self.memory, self.network)

  @property
  def exposed(self) -> float:
    """Time of a step if the device waits for every collective."""
    return max(self.compute, self.memory) + self.network

  @property
  def bound(self) -> str:
    """The part that takes longest."""
    return max(('compute', 'memory', 'network'), key=lambda x: getattr(self, x))


def step_time(
  costs: Costs, chip: Chip, utilisation: Utilisation
) -> StepTime | None:
  """The roofline of a step; None for a chip without published speeds.

  A collective that crosses islands is assumed to run at the speed between
  islands, even if most of its traffic could stay inside one.

  Raises:
    ValueError: A collective crosses islands, and `chip.outside` is unknown.

  >>> chip = Chip('mine', 1e9, flops=2e12, bandwidth=1e11, network=1e10)
  >>> step_time(Costs(1e12, 1e10, 0, ()), chip, ASSUMED).compute
  1.0
  """
  if chip.flops is None:
    return None

  def seconds(collective: Collective) -> float:
    speed = chip.network
    if collective.leaves(chip.island):
      speed = chip.outside
      if speed is None:
        raise ValueError(
          f'chip {chip.name}: devices beyond its island of {chip.island} talk '
          'to each other; give the speed of that as `outside`'
        )
    return collective.sent / speed

  return StepTime(
    compute=costs.flops / (chip.flops * utilisation.compute),
    memory=costs.product_bytes / (chip.bandwidth * utilisation.memory),
    network=sum(map(seconds, costs.collectives)) / utilisation.network,
  )
