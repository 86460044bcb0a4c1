"""What a step lowers: the loss of tokens, or that of compared answers.

An objective is a function (model, lora, base, batch, rng) -> (sum of the
losses, sums of further numbers by name), differentiable in `lora`. The sums are
over the rows given; a step divides them by what counts in the whole batch. It
has `metrics`, the names of the further numbers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lora_opt.reading import values

ROUNDING = 1e-5  # relative, of the likelihood of an answer in float32
Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


class CrossEntropy:
  """The loss of the model itself at each position, times its weight."""

  metrics: ClassVar[tuple[str, ...]] = ()

  def __call__(
    self, model: Any, lora: Any, base: Any, batch: Batch, rng: jax.Array
  ) -> tuple[jax.Array, Sums]:
    """See the module."""
    losses = model.token_losses(base, lora, batch, rng)
    return jnp.sum(losses * batch['weights']), {}


@dataclasses.dataclass(frozen=True)
class DPO:
  """Direct preference optimization: of two answers, the chosen one likelier.

  For the log-likelihoods of chosen and rejected answer by the adapted model
  (c, r) and by the base without its adapter (c0, r0), the loss of a pair is

    -log sigmoid(beta * ((c - c0) - (r - r0)))

  A likelihood is that of all the answer's tokens, the end of its turn among
  them. What the base says is computed in the same step: no second model is
  held. Dropout of the adapter has no part in it.

  Attributes:
    beta: how much it costs to leave the base; the reward of an answer is
      beta * (c - c0).
    label_smoothing: which share of the pairs is taken to be the wrong way
      round, below 0.5: "conservative DPO".

  Raises:
    ValueError: a number out of bounds.

  >>> loss, margin, right = DPO(beta=0.5).judge(
  ...   jnp.array([[-1.0, -3.0]]), jnp.array([[-2.0, -2.0]]))
  >>> round(float(loss[0]), 4), float(margin[0]), float(right[0])
  (0.3133, 1.0, 1.0)

  References:
    Rafailov et al. 2023, Direct Preference Optimization, equation 7,
    arXiv 2305.18290; for the smoothing Mitchell 2023, A note on DPO with noisy
    preferences.
  """

  compares: ClassVar[bool] = True  # answers, see `reading.parts`
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
    """Loss and margin of pairs, and whether they are the right way round.

    Args:
      adapted: (..., 2) log-likelihoods of chosen and rejected answer, in nats.
      base: (..., 2) those without the adapter.

    Returns:
      (...) losses, the difference of the two rewards, and 1 where the chosen
      answer has the greater one, 0 where the rejected one has it and 1/2 where
      they differ by no more than rounding does, as before the first step.
    """
    rewards = self.beta * (adapted - base)
    margin = rewards[..., 0] - rewards[..., 1]
    smooth = self.label_smoothing
    losses = -(1 - smooth) * jax.nn.log_sigmoid(margin)
    if smooth:
      losses -= smooth * jax.nn.log_sigmoid(-margin)
    # Programs with and without an adapter do not round alike.
    size = jnp.sum(jnp.abs(adapted) + jnp.abs(base), axis=-1)
    told_apart = jnp.abs(margin) > self.beta * ROUNDING * size
    right = 0.5 + 0.5 * jnp.where(told_apart, jnp.sign(margin), 0.0)
    return losses, margin, right

  def __call__(
    self, model: Any, lora: Any, base: Any, batch: Batch, rng: jax.Array
  ) -> tuple[jax.Array, Sums]:
    """See the module; the batch is of `data.preference_batching`."""
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
    losses: (rows, length) of tokens, in nats.
    batch: weights and segment_ids (rows, length), in which pair k has the
      segments 2k + 1 and 2k + 2, from 0; counts (rows, pairs).

  Returns:
    (rows, pairs, 2), chosen and rejected; 0 where there is no pair.
  """
  rows, pairs = batch['counts'].shape

  def of_row(values, segments):
    return jax.ops.segment_sum(values, segments, num_segments=2 * pairs + 1)

  sums = jax.vmap(of_row)(-losses * batch['weights'], batch['segment_ids'])
  return sums[:, 1:].reshape(rows, pairs, 2)


def batch_form(objective: Any, form: str) -> str:
  """The form of the batches that an objective takes from a model of a form.

  Raises:
    ValueError: there is none.

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
