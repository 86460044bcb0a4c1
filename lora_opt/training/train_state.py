"""The state that a training run carries from step to step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import transforms
from lora_opt.devices.partitioning import Placement
from lora_opt.state_sharding import state_shardings


class TrainState(NamedTuple):
  """Everything a step changes; the frozen base is not part of it."""

  step: jax.Array  # () int32, finished steps
  lora: Any  # adapter parameters
  opt_state: optax.OptState

  @property
  def evaluated(self) -> Any:
    """The adapters to evaluate and export: their average, if there is one."""
    if transforms.keeps_average(self.opt_state):
      return transforms.average_of(self.opt_state, self.lora)
    return self.lora


def create_train_state(
  lora: Any, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
  """The state before the first step.

  Args:
    lora: adapters, already placed as `placement` says.
    optimizer: its state is created with the sharding of the parameters.
    placement: the placement of the model.
  """
  create = placement.jit(
    functools.partial(_first, optimizer),
    out_shardings=_shardings(lora, optimizer, placement),
  )
  return create(lora)


def abstract_train_state(
  lora: Any, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
  """Shapes and shardings of `create_train_state`'s result, not computed.

  Args:
    lora: adapters, or their shapes with shardings.
    optimizer, placement: see `create_train_state`.
  """
  shapes = jax.eval_shape(functools.partial(_first, optimizer), lora)
  return placed_shapes(shapes, _shardings(lora, optimizer, placement))


def placed_shapes(tree: Any, shardings: Any) -> Any:
  """A tree of `jax.ShapeDtypeStruct` with the given shardings.

  Args:
    tree: a tree of arrays or shapes.
    shardings: a tree of shardings like it.
  """
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )


def _first(optimizer: optax.GradientTransformation, lora: Any) -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), lora, optimizer.init(lora))


def _shardings(lora, optimizer, placement) -> TrainState:
  return TrainState(
    placement.whole, placement.trainable, state_shardings(optimizer, lora)
  )


def count_parameters(tree: Any) -> int:
  """Number of scalars in all leaves; quantized weights count each weight.

  >>> count_parameters({'a': jnp.zeros((2, 3)), 'b': jnp.zeros(4)})
  10
  """
  leaves = jax.tree.leaves(tree, is_leaf=lambda x: hasattr(x, 'size'))
  return sum(leaf.size for leaf in leaves)
