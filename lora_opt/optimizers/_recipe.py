"""The parts that all recipes share."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from lora_opt import pairs, transforms

ScalarOrSchedule = transforms.ScalarOrSchedule
# Selects the leaves that decay: a function from parameters to a tree of
# booleans. (A fixed tree would not fit, since leaves outside pairs are hidden
# from the chain.)
Mask = Callable[[Any], Any] | None
MAX_SKIPS = transforms.MAX_CONSECUTIVE_SKIPS


def recipe(
  *stages: optax.GradientTransformation,
  layout: pairs.Layouts,
  other: optax.GradientTransformation | None,
  max_skips: int | None,
  learning_rate: ScalarOrSchedule = 0.0,
  elementwise: bool = False,
  reports: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Builds a chain for the LoRA leaves, `other` for the rest, and one guard.

  Without `other`, the gradients of the other leaves are not used and the guard
  does not check them. `elementwise` and `reports` describe the chain; see
  `transforms.skip_nonfinite`.
  """

  def labels(tree):
    return pairs.lora_labels(tree, layout)

  def guarded(inner, gives_up_on=None):
    return transforms.skip_nonfinite(
      inner,
      max_consecutive=max_skips,
      learning_rate=learning_rate,
      gives_up_on=gives_up_on,
      elementwise=elementwise and other is None,
      reports=reports and other is None,
    )

  chain = optax.chain(*stages)
  if other is None:
    return optax.partition(
      {'lora': guarded(chain), 'other': optax.set_to_zero()}, labels
    )
  return guarded(
    optax.partition({'lora': chain, 'other': other}, labels),
    lambda tree: jax.tree.map(lambda label: label == 'lora', labels(tree)),
  )
