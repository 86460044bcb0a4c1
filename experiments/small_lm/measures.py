"""Computes numbers with intervals from the runs of a setting."""

import itertools
from collections.abc import Sequence

import numpy as np

from experiments import sweeps
from experiments.small_lm import plan
from experiments.small_lm.finetune import curve_steps

OCTAVES = np.log2(plan.STEP)  # from one power to the next


def best(runs: plan.Runs) -> dict[int, dict]:
  """The runs at the best rate of seed 0, by seed."""
  power = plan.best_power(plan.swept(runs))
  return {seed: row for (p, seed), row in runs.items() if p == power}


def paired(runs: plan.Runs, others: plan.Runs, field: str = 'loss'):
  """The difference of `field`, runs minus others, each at its best rate.

  A `sweeps.Interval` over the seeds that both have.
  """
  own, other = best(runs), best(others)
  seeds = sorted(own.keys() & other.keys())
  return sweeps.mean([own[s][field] - other[s][field] for s in seeds])


def crossings(
  x: Sequence[float], losses: Sequence[float], limit: float
) -> list[float]:
  """The x at which a line through the points crosses the limit.

  >>> crossings([0, 2, 4], [3.0, 1.0, 2.0], 1.5)
  [1.5, 3.0]
  """
  found = []
  points = zip(x, losses, strict=True)
  for (x0, y0), (x1, y1) in itertools.pairwise(points):
    if (y0 > limit) != (y1 > limit):
      # Where training diverged there is no loss: take the middle.
      finite = np.isfinite(y0) and np.isfinite(y1)
      part = (y0 - limit) / (y0 - y1) if finite else 0.5
      found.append(float(x0 + part * (x1 - x0)))
  return found


def good_ends(runs: plan.Runs) -> tuple[float | None, float | None]:
  """Powers between which the loss is within GOOD of the best.

  The loss is interpolated linearly between swept rates. None for an end that
  the sweep did not reach.
  """
  first = plan.swept(runs)
  powers = sorted(first)
  losses = [first[p] for p in powers]
  middle = plan.best_power(first)
  ends = crossings(powers, losses, first[middle] + plan.GOOD)
  low = max((e for e in ends if e < middle), default=None)
  return low, min((e for e in ends if e > middle), default=None)


def good_range(runs: plan.Runs) -> tuple[float, bool]:
  """Octaves of rates near the best, and whether both ends were swept."""
  low, high = good_ends(runs)
  powers = plan.swept(runs)
  width = (max(powers) if high is None else high) - (
    min(powers) if low is None else low
  )
  return float(width * OCTAVES), low is not None and high is not None


def bracketed(runs: plan.Runs) -> bool:
  """Whether the best rate has worse neighbours on both sides."""
  first = plan.swept(runs)
  power = plan.best_power(first)
  return power - 1 in first and power + 1 in first


def finished(cell: plan.Cell, runs: plan.Runs) -> bool:
  """Whether a cell has all its runs."""
  begun = next(iter(plan.swept(runs)), None)
  if begun is None:
    return False
  return plan.next_run(cell, plan.losses(runs), begun) is None


def cost_of_rate(runs: plan.Runs, power: int) -> float | None:
  """How much higher the loss is at a rate that is best elsewhere.

  For seed 0, interpolated linearly between swept rates. None outside the
  sweep; inf next to a rate that diverged.
  """
  first = plan.swept(runs)
  powers = sorted(first)
  if not powers[0] <= power <= powers[-1]:
    return None
  losses = [first[p] for p in powers]
  if power in first:
    at = first[power]
  else:
    place = np.searchsorted(powers, power)
    near = losses[place - 1 : place + 1]
    if not np.isfinite(near).all():
      return np.inf
    at = float(np.interp(power, powers, losses))
  return at - min(losses)


def steps_to(setting: plan.Setting, row: dict, target: float) -> float:
  """Steps after which the curve of a run reaches the target, or inf."""
  at = curve_steps(setting)[: len(row['curve'])]
  curve = [float(x) for x in row['curve']]
  if curve and curve[0] <= target:
    return float(at[0])
  return next(iter(crossings(at, curve, target)), np.inf)


def steps_ratio(
  setting: plan.Setting, runs: plan.Runs, baseline: plan.Runs
) -> sweeps.Interval:
  """Steps to the lowest loss of the baseline, relative to its own steps.

  Both at their best constant rates; the geometric mean over seeds.
  """
  own, other = best(runs), best(baseline)
  ratios = []
  for seed in sorted(own.keys() & other.keys()):
    curve = np.asarray(other[seed]['curve'], float)
    target, taken = curve.min(), curve_steps(setting)[int(np.argmin(curve))]
    ratios.append(steps_to(setting, own[seed], float(target)) / taken)
  return sweeps.geometric_mean(ratios)
