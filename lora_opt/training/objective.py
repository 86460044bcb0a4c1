"""Training objectives: the loss of tokens, or of compared answers.

An objective is a function (model, lora, base, batch, rng) -> (sum of the
losses, sums of metrics by name), differentiable in `lora`. The sums are over
the given rows; a step divides them by the count over the whole batch. The
objective's attribute `metrics` has the names of its metrics.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lora_opt.reading import values

ROUNDING = 1e-5  # relative rounding error of an answer's likelihood in float32
Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


class CrossEntropy:
  """The loss of the model itself at each position, times its weight."""

  metrics: ClassVar[tuple[str, ...]] = ()

  def __call__(
    self, model: Any, lora: Any, base: Any, batch: Batch, rng: jax.Array
  ) -> tuple[jax.Array, Sums]:
    """See the module docstring."""
    losses = model.token_losses(base, lora, batch, rng)
    return jnp.sum(losses * batch['weights']), {}


@dataclasses.dataclass(frozen=True)
class DPO:
  """Direct preference optimization: makes the chosen of two answers likelier.

  Let (c, r) be the log-likelihoods of the chosen and rejected answer under the
  adapted model, and (c0, r0) those under the base without its adapter. The loss
  of a pair is

    -log sigmoid(beta * ((c - c0) - (r - r0)))

  A likelihood covers all tokens of the answer, its end-of-turn tokens included.
  Those of the base are computed in the same step, without the adapter and its
  dropout, so no second model is held.

  Attributes:
    beta: the cost of departing from the base; the reward of an answer is
      beta * (c - c0).
    label_smoothing: the assumed fraction of pairs with swapped labels, below
      0.5: "conservative DPO".

  Raises:
    ValueError: a value is out of bounds.

  >>> loss, margin, right = DPO(beta=0.5).judge(
  ...   jnp.array([[-1.0, -3.0]]), jnp.array([[-2.0, -2.0]]))
  >>> round(float(loss[0]), 4), float(margin[0]), float(right[0])
  (0.3133, 1.0, 1.0)

  References:
    Rafailov et al. 2023, Direct Preference Optimization, equation 7,
    arXiv 2305.18290; for the smoothing Mitchell 2023, A note on DPO with noisy
    preferences.
  """

  compares: ClassVar[bool] = True  # it compares answers, see `reading.parts`
  metrics: ClassVar[tuple[str, ...]] = (
    'rewards/margin',
    'rewards/accuracy',
    'rewards/chosen',
    'rewards/rejected',
  )

  beta: float = 0.1
  label_smoothing: float = 0.0

  def __post_init__(self):
    values.number(self.beta, 'DPO: beta', above=0)
    values.number(self.label_smoothing, 'DPO: label_smoothing', least=0)
    if self.label_smoothing >= 0.5:
      raise ValueError(
        f'DPO: label_smoothing={self.label_smoothing} must be below 0.5, where '
        'a pair says nothing'
      )

  def judge(
    self, adapted: jax.Array, base: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss and margin of pairs, and whether the chosen answer is preferred.

    Args:
      adapted: (..., 2) log-likelihoods of chosen and rejected answer, in nats.
      base: (..., 2) log-likelihoods without the adapter.

    Returns:
      (...) losses; the differences of the two rewards; and 1 where the chosen
      answer has the greater reward, 0 where the rejected one has it, and 1/2
      where they differ by no more than rounding, as before the first step.
    """
    rewards = self.beta * (adapted - base)
    margin = rewards[..., 0] - rewards[..., 1]
    smooth = self.label_smoothing
    losses = -(1 - smooth) * jax.nn.log_sigmoid(margin)
    if smooth:
      losses -= smooth * jax.nn.log_sigmoid(-margin)
    # Programs with and without an adapter round differently.
    size = jnp.sum(jnp.abs(adapted) + jnp.abs(base), axis=-1)
    told_apart = jnp.abs(margin) > self.beta * ROUNDING * size
    right = 0.5 + 0.5 * jnp.where(told_apart, jnp.sign(margin), 0.0)
    return losses, margin, right

  def __call__(
    self, model: Any, lora: Any, base: Any, batch: Batch, rng: jax.Array
  ) -> tuple[jax.Array, Sums]:
    """See the module docstring; batches are from `data.preference_batching`."""
    adapted = pair_likelihoods(
      model.token_losses(base, lora, batch, rng), batch
    )
    without = pair_likelihoods(
      jax.lax.stop_gradient(model.token_losses(base, None, batch, None)), batch
    )
    losses, margins, right = self.judge(adapted, without)
    counts = batch['counts']
    rewards = self.beta * (adapted - without)
    found = {
      'rewards/margin': margins,
      'rewards/accuracy': right,
      'rewards/chosen': rewards[..., 0],
      'rewards/rejected': rewards[..., 1],
    }
    return (
      jnp.sum(losses * counts),
      {name: jnp.sum(value * counts) for name, value in found.items()},
    )


def pair_likelihoods(losses: jax.Array, batch: Batch) -> jax.Array:
  """Log-likelihoods of the answers of each pair.

  Args:
    losses: (rows, length) token losses, in nats.
    batch: weights and segment_ids (rows, length), in which pair k (from 0) has
      the segments 2k + 1 and 2k + 2; counts (rows, pairs).

  Returns:
    (rows, pairs, 2), chosen and rejected; 0 where there is no pair.
  """
  rows, pairs = batch['counts'].shape

  def of_row(values, segments):
    return jax.ops.segment_sum(values, segments, num_segments=2 * pairs + 1)

  sums = jax.vmap(of_row)(-losses * batch['weights'], batch['segment_ids'])
  return sums[:, 1:].reshape(rows, pairs, 2)


def batch_form(objective: Any, form: str) -> str:
  """The batch form that an objective needs, for a model of the given form.

  Raises:
    ValueError: the objective does not support that form.

  >>> batch_form(None, 'decoder'), batch_form(DPO(), 'decoder')
  ('decoder', 'decoder_pairs')
  """
  if not isinstance(objective, DPO):
    return form
  if form != 'decoder':
    raise ValueError(
      f'DPO compares answers of decoders, and this model is of form {form!r}'
    )
  return 'decoder_pairs'
