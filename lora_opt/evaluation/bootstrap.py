"""Confidence intervals of scores, by resampling the examples."""

from collections.abc import Callable, Sequence

import numpy as np

from lora_opt.evaluation.finite import require_finite

# Number of draws; fewer for summaries that cost more than a mean.
RESAMPLES_OF_MEAN = 2000
RESAMPLES = 500


def bootstrap_interval(
  *columns: Sequence[float],
  summary: Callable[..., float] = np.mean,
  resamples: int | None = None,
) -> tuple[float, float]:
  """The 95 % interval of a score: percentiles over resampled examples.

  The draws are seeded: the same examples give the same interval. If all
  examples are equal, the interval has no width, which means nothing.

  Args:
    *columns: sequences of equal length with one number per example, such as the
      right and the predicted labels. They are resampled together.
    summary: computes the score of the columns; by default the mean of the only
      one.
    resamples: number of draws; by default 2000 for the mean, 500 for others.

  Returns:
    The lower and upper bound.

  Raises:
    ValueError: a number is not finite.

  >>> bootstrap_interval([1.0, 1.0, 1.0])
  (1.0, 1.0)
  """
  arrays = [np.asarray(column) for column in columns]
  for array in arrays:
    require_finite(array, 'a number', 'interval', 'Leave it out, or mend it')
  count = len(arrays[0])
  rng = np.random.default_rng(0)
  if resamples is None:
    resamples = RESAMPLES_OF_MEAN if summary is np.mean else RESAMPLES
  scores = []
  for _ in range(resamples):
    draw = rng.integers(count, size=count)
    scores.append(summary(*(array[draw] for array in arrays)))
  low, high = np.percentile(scores, [2.5, 97.5])
  return float(low), float(high)
