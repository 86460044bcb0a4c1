"""What all recipes share."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from lora_opt import pairs, transforms

ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]
# Which leaves decay: a function from parameters to a tree of booleans. (A
# tree does not fit, since leaves outside pairs are hidden from the chain.)
Mask = Callable[[Any], Any] | None


def recipe(
  *stages: optax.GradientTransformation,
  layout: pairs.Layouts,
  other: optax.GradientTransformation | None,
) -> optax.GradientTransformationExtraArgs:
  """A chain for the LoRA leaves; `other` for the rest."""
  return optax.partition(
    {
      'lora': transforms.skip_nonfinite(optax.chain(*stages)),
      'other': optax.set_to_zero() if other is None else other,
    },
    lambda tree: pairs.lora_labels(tree, layout),
  )
