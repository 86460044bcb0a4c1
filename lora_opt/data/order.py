"""The order in which an epoch reads the examples of one data set or a mixture.

The order depends only on the seed and the number of the epoch. A position in
training is therefore two integers, and resuming needs nothing else.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Order:
  """The examples of each epoch, as indices into the concatenated parts.

  Without rates, an epoch has every example once. With rates, it has the same
  number of examples (up to rounding), and part i contributes the share
  rates[i]. Each part is walked through in random order again and again, and
  each epoch continues where the previous one stopped. So no example of a part
  occurs twice before all of them have occurred once.

  Attributes:
    counts: number of examples in each part.
    rates: share of each part, summing to 1; None uses every example once.
    seed: seed of all random orders; None keeps the given order and ignores
      `rates`.

  >>> order = Order((4, 2), (0.5, 0.5), seed=0)
  >>> [sorted(order.indices(epoch, order.rng(epoch))) for epoch in (0, 1)]
  [[0, 2, 3, 4, 4, 5], [1, 1, 2, 4, 5, 5]]
  """

  counts: tuple[int, ...]
  rates: tuple[float, ...] | None = None
  seed: int | None = None

  def rng(self, epoch: int) -> np.random.Generator | None:
    """The random generator of an epoch, for its order and then for its rows."""
    return (
      None if self.seed is None else np.random.default_rng((self.seed, epoch))
    )

  def indices(
    self, epoch: int, rng: np.random.Generator | None
  ) -> Sequence[int]:
    """The examples of an epoch in the order in which they are read.

    Args:
      epoch: number of the epoch, from 0.
      rng: the generator that `rng(epoch)` returned.
    """
    total = sum(self.counts)
    if rng is None:
      return range(total)
    if self.rates is None:
      return rng.permutation(total).tolist()
    starts = np.cumsum((0, *self.counts[:-1]))
    chosen = []
    for part, (rate, start) in enumerate(zip(self.rates, starts, strict=True)):
      begin, end = (round(rate * total * e) for e in (epoch, epoch + 1))
      chosen.append(start + self._walk(part, begin, end))
    return rng.permutation(np.concatenate(chosen)).tolist()

  def _walk(self, part: int, begin: int, end: int) -> np.ndarray:
    """Steps begin ... end - 1 of the endless walk through a part."""
    count = self.counts[part]
    first, last = begin // count, -(-end // count)
    # The 1 keeps these seeds different from (seed, epoch), which numpy pads
    # with zeros.
    passes = [
      np.random.default_rng((self.seed, part, number, 1)).permutation(count)
      for number in range(first, last)
    ]
    walked = np.concatenate([np.zeros(0, np.int64), *passes])
    return walked[begin - first * count : end - first * count]


def mixing_rates(
  sizes: Sequence[int],
  rates: str | Sequence[float],
  temperature: float = 1.0,
  maximum: int | None = None,
) -> tuple[float, ...]:
  """Computes the share of each part of a mixture.

  Args:
    sizes: number of examples in each part.
    rates: 'proportional' to the sizes, 'equal', or a positive number for each
      part.
    temperature: rates are raised to the power 1 / temperature before they are
      normalised to sum to 1; values above 1 bring them closer to equal.
    maximum: a larger part counts as this many examples ('proportional' only),
      so that one huge data set does not dominate the others.

  Returns:
    Positive numbers that sum to 1.

  Raises:
    ValueError: the rates are unknown or not positive, their number is wrong,
      temperature or maximum is not positive, or a task is left with a share of
      zero.

  References:
    Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified
    Text-to-Text Transformer, section 3.5.2.

  >>> mixing_rates([100, 300], 'proportional')
  (0.25, 0.75)
  >>> mixing_rates([100, 300], 'proportional', maximum=100)
  (0.5, 0.5)
  >>> mixing_rates([1, 16], 'proportional', temperature=2)
  (0.2, 0.8)
  """
  if not 0 < temperature < math.inf:
    raise ValueError(f'temperature={temperature} must be above 0, and finite')
  if maximum is not None and maximum < 1:
    raise ValueError(f'maximum={maximum} must be at least 1, or None')
  if rates == 'proportional':
    weights = [min(size, maximum or size) for size in sizes]
  elif rates == 'equal':
    weights = [1.0] * len(sizes)
  elif isinstance(rates, str) or len(rates) != len(sizes):
    raise ValueError(
      f"rates={rates!r} must be 'proportional', 'equal' or a number for each "
      f'of the {len(sizes)} tasks'
    )
  else:
    weights = list(rates)
  if not all(0 < weight < math.inf for weight in weights):
    raise ValueError(f'rates={rates!r}: every rate must be above 0, and finite')
  try:
    powers = [weight ** (1 / temperature) for weight in weights]
    shares = tuple(power / sum(powers) for power in powers)
  except (OverflowError, ZeroDivisionError):
    shares = (0,)
  if min(shares) == 0:
    raise ValueError(
      f'rates={rates!r} at temperature={temperature} leave nothing to a task'
    )
  return shares
