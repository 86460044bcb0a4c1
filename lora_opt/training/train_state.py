"""What one training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt.state_sharding import state_shardings
from lora_opt.training.partitioning import Placement


class TrainState(NamedTuple):
  """Everything a step changes; the frozen base is not part of it."""

  step: jax.Array  # () int32, finished steps
  lora: Any  # adapter parameters
  opt_state: optax.OptState


def create_train_state(
  lora: Any, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
  """The state before the first step.

  Args:
    lora: adapters, already where `placement` has them.
    optimizer: its state is made where its parameters lie.
    placement: of the model.
  """
  shardings = TrainState(
    placement.whole, placement.trainable, state_shardings(optimizer, lora)
  )
  create = placement.jit(
    lambda lora: TrainState(
      jnp.zeros((), jnp.int32), lora, optimizer.init(lora)
    ),
    out_shardings=shardings,
  )
  return create(lora)


def count_parameters(tree: Any) -> int:
  """Number of scalars in all leaves; of weights, however few bits they have.

  >>> count_parameters({'a': jnp.zeros((2, 3)), 'b': jnp.zeros(4)})
  10
  """
  leaves = jax.tree.leaves(tree, is_leaf=lambda x: hasattr(x, 'size'))
  return sum(leaf.size for leaf in leaves)
