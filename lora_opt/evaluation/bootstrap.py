"""How sure a score is: confidence intervals by resampling the examples."""

from collections.abc import Callable, Sequence

import numpy as np

from lora_opt.evaluation.finite import require_finite

# Draws; fewer where one costs more than a mean.
RESAMPLES_OF_MEAN = 2000
RESAMPLES = 500


def bootstrap_interval(
  *columns: Sequence[float],
  summary: Callable[..., float] = np.mean,
  resamples: int | None = None,
) -> tuple[float, float]:
  """95 % interval of a score, from resampled examples (percentiles).

  The draws are seeded: the same examples give the same interval. A score whose
  examples are all alike gets an interval without width, which says nothing.

  Args:
    *columns: one number per example each, of equal lengths, such as the right
      and the predicted labels; they are resampled together.
    summary: the score of these columns, by default the mean of the only one.
    resamples: number of draws; by default 2000 for the mean, 500 for others.

  Returns:
    Its lower and upper end.

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
