"""Sweeps of the learning rate over seeds, with confidence intervals."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats


def short(x: float, digits: int = 2) -> str:
  """Rounds a number, and writes it without an exponent where that is readable.

  >>> short(275.2), short(0.00123), short(1.23e-9)
  ('280', '0.0012', '1.2e-09')
  """
  return f'{float(f"{x:.{digits}g}"):g}'


class Interval(NamedTuple):
  """A mean over seeds and its 95 % confidence interval."""

  middle: float
  low: float
  high: float

  def text(self, digits: int = 2) -> str:
    """The interval as text for a table.

    >>> Interval(275.2, 261.0, 0.00123).text()
    '280 [260, 0.0012]'
    """
    if not np.isfinite(self.middle):
      return 'diverges'
    middle, low, high = (short(x, digits) for x in self)
    return f'{middle} [{low}, {high}]'


class Best(NamedTuple):
  """The best learning rate of a sweep, and its loss."""

  index: int
  rate: float
  loss: Interval
  octaves: float  # range of learning rates with at most twice the best loss
  at_edge: bool  # the sweep ends here: a better rate may lie outside

  def rate_text(self) -> str:
    return short(self.rate) + (' (edge)' if self.at_edge else '')


def sweep(
  train: Callable, rates: Sequence[float], seeds: int, options: Any = ()
) -> Any:
  """Trains with every learning rate and every seed in one compiled call.

  Args:
    train: (rate, seed, options) -> tree of arrays. What depends only on the
      seed, such as the problem, is computed once for all rates. The same
      function is compiled only once.
    rates: learning rates.
    seeds: number of seeds, which are 0 to seeds - 1.
    options: a tree of arrays for `train`.

  Returns:
    The tree with arrays (rates, seeds, ...).

  >>> sweep(lambda rate, seed, options: rate * seed, [1.0, 2.0], 3)
  array([[0., 1., 2.],
         [0., 2., 4.]], dtype=float32)
  """
  run = _compiled(train)
  results = run(jnp.asarray(rates), jnp.arange(seeds), options)
  return jax.tree.map(np.asarray, results)


@functools.lru_cache(maxsize=64)
def _compiled(train):
  over_rates = jax.vmap(train, in_axes=(0, None, None))
  return jax.jit(jax.vmap(over_rates, in_axes=(None, 0, None), out_axes=1))


def geometric_mean(values: Sequence[float]) -> Interval:
  """The geometric mean over seeds, with the interval of Student's t.

  Losses of different seeds differ by factors, so logarithms are averaged.
  (Resampling three to five numbers would make the interval too narrow.) If one
  of the values is infinite, all three numbers are.

  >>> print(geometric_mean([1.0, 2.0, 4.0]).text())
  2 [0.36, 11]
  """
  logs = np.log(np.maximum(np.asarray(values, np.float64), 1e-300))
  return Interval(*np.exp(mean(logs)).tolist())


def mean(values: Sequence[float]) -> Interval:
  """The mean over seeds, with the interval of Student's t.

  For example for differences of two methods, seed by seed. If one of the values
  is infinite, all three numbers are.

  >>> print(mean([1.0, 2.0, 3.0]).text())
  2 [-0.48, 4.5]
  """
  values = np.asarray(values, np.float64)
  if not np.all(np.isfinite(values)):
    return Interval(np.inf, np.inf, np.inf)
  half = 0.0
  if len(values) > 1:
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
  middle = np.mean(values)
  return Interval(*np.array([middle, middle - half, middle + half]).tolist())


def best_rate(rates: Sequence[float], losses: np.ndarray) -> Best:
  """Finds the rate with the smallest geometric mean over seeds.

  The interval is that of the loss at this rate. It does not account for the
  fact that the same seeds were used to choose the rate.

  Args:
    rates: learning rates, ascending by equal factors.
    losses: (rates, seeds); inf where training diverged.

  Returns:
    `Best`.

  >>> best_rate([0.1, 0.2, 0.4], np.array([[4.0], [1.0], [3.0]])).rate
  0.2
  """
  intervals = [geometric_mean(row) for row in losses]
  means = np.array([interval.middle for interval in intervals])
  index = int(np.argmin(means))
  good = int(np.sum(means <= 2 * means[index]))
  octave = np.log2(rates[1] / rates[0]) if len(rates) > 1 else 0.0
  return Best(
    index,
    float(rates[index]),
    intervals[index],
    float(good * octave),
    index in (0, len(rates) - 1),
  )
