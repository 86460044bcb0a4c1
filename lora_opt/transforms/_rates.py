"""Learning rates: a number or a schedule, and never NaN."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]


def rate_at(learning_rate: ScalarOrSchedule, count: jax.Array) -> Any:
  """The learning rate of the step `count`; 0 where it is not finite.

  >>> rate_at(lambda count: 1.0 / count, jnp.array(0)).item()
  0.0
  """
  rate = raw_rate_at(learning_rate, count)
  return jnp.where(jnp.isfinite(rate), rate, jnp.zeros_like(rate))


def raw_rate_at(learning_rate: ScalarOrSchedule, count: jax.Array) -> Any:
  """The learning rate of the step `count`, even where it is not finite."""
  return learning_rate(count) if callable(learning_rate) else learning_rate


def scale_by_finite_rate(
  learning_rate: ScalarOrSchedule,
) -> optax.GradientTransformation:
  """`optax.scale_by_learning_rate`, where a rate of NaN or inf counts as 0.

  If `skip_nonfinite` gets the same learning rate, it counts such a step as
  skipped. The rate becomes zero rather than the final updates. This keeps the
  results of earlier stages consistent, such as the moments of a refactored
  pair.

  Args:
    learning_rate: a float or a schedule.

  Returns:
    A transformation.

  >>> tx = scale_by_finite_rate(lambda count: jnp.nan)
  >>> print(tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0])
  [-0.]
  """
  if callable(learning_rate):
    return optax.scale_by_learning_rate(
      lambda count: rate_at(learning_rate, count)
    )
  return optax.scale_by_learning_rate(rate_at(learning_rate, jnp.zeros(())))
