"""T5X: optimizers for its gin files, and LoRA for its networks.

    from __gin__ import dynamic_registration
    import lora_opt.integrations.t5x
    OPTIMIZER = @lora_opt.integrations.t5x.lora_rite()

T5X calls a handful of methods of an optimizer and does not check its class. So
this file needs flax but never imports t5x itself. docs/t5x.md has the rest: the
network, restoring a pretrained checkpoint, a complete gin file.

The learning rate of every step comes from T5X (`utils.Trainer`'s
`learning_rate_fn`), so recipes here take all their options except that one.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.linen.partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import optax
from flax import serialization, struct, traverse_util

from lora_opt import optimizers as recipes
from lora_opt import pairs

Recipe = Callable[..., optax.GradientTransformation]


class OptimizerState(struct.PyTreeNode):
  """The parts of an optimizer's state that T5X reads and writes."""

  step: jax.Array  # () int32
  param_states: Any  # state of the optax transformation


class Optimizer(struct.PyTreeNode):
  """Parameters and optimizer state, as a T5X train state holds them."""

  optimizer_def: 'OptimizerDef' = struct.field(pytree_node=False)
  state: OptimizerState
  target: Any

  def apply_gradient(
    self, grads: Any, learning_rate: float | jax.Array, **unused: Any
  ) -> 'Optimizer':
    """Takes one step; parameters outside of pairs do not change."""
    del unused
    target, state = self.optimizer_def.apply_gradient(
      learning_rate, self.target, self.state, grads
    )
    return self.replace(target=target, state=state)

  def state_dict(self) -> dict[str, Any]:
    """Nested dicts for a checkpoint, without empty ones.

    T5X flattens them to paths, which lose empty dicts.
    """
    return {
      'target': serialization.to_state_dict(self.target),
      'state': _without_empty(serialization.to_state_dict(self.state)),
    }

  def restore_state(self, state_dict: Mapping[str, Any]) -> 'Optimizer':
    """The inverse of `state_dict`, for an optimizer of the same structure.

    Raises:
      ValueError: the dict lacks a part of the state; the message has its path.
    """
    target = serialization.from_state_dict(self.target, state_dict['target'])
    full = _with_empty(
      state_dict['state'], serialization.to_state_dict(self.state)
    )
    return self.replace(
      target=target, state=serialization.from_state_dict(self.state, full)
    )


class OptimizerDef:
  """A recipe in the form that T5X expects: its `optimizer_def`."""

  def __init__(self, make: Recipe):
    """Keeps the recipe.

    Args:
      make: learning rate -> transformation of the whole parameter tree, whose
        state has the same structure for every learning rate.
    """
    self._make = make

  def create(self, target: Any) -> Optimizer:
    """Creates the optimizer of these parameters.

    Raises:
      ValueError: there are no LoRA pairs.
    """
    return Optimizer(self, self.init_state(target), target)

  def init_state(self, params: Any) -> OptimizerState:
    states = self._make(0.0).init(params)
    return OptimizerState(jnp.zeros((), jnp.int32), states)

  def apply_gradient(
    self,
    learning_rate: float | jax.Array,
    params: Any,
    state: OptimizerState,
    grads: Any,
  ) -> tuple[Any, OptimizerState]:
    """Returns (new parameters, new state)."""
    updates, states = self._make(learning_rate).update(
      grads, state.param_states, params
    )
    params = optax.apply_updates(params, updates)
    return params, OptimizerState(state.step + 1, states)

  def derive_logical_axes(
    self, optimizer: Optimizer, param_logical_axes: Any
  ) -> Optimizer:
    """Replaces arrays with axis names: those of the parameter, or None.

    None is for r x r matrices and counts, which are on every device.

    Args:
      optimizer: an optimizer with arrays or their shapes.
      param_logical_axes: a tree like the parameters, of PartitionSpecs.
    """
    leaves = dict(pairs.leaf_paths(param_logical_axes))
    axes = jax.tree.unflatten(
      jax.tree.structure(optimizer.target),
      [leaves[path] for path, _ in pairs.leaf_paths(optimizer.target)],
    )
    states = optax.tree_map_params(
      self._make(0.0),
      lambda leaf, x: leaf if isinstance(leaf, optax.MaskedNode) else x,
      optimizer.state.param_states,
      axes,
      transform_non_params=lambda part: jax.tree.map(lambda _: None, part),
      is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    return Optimizer(
      optimizer.optimizer_def, OptimizerState(None, states), axes
    )


def _without_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
  flat = traverse_util.flatten_dict(tree)
  return traverse_util.unflatten_dict(flat)


def _with_empty(tree: Mapping[str, Any], like: Mapping[str, Any]):
  """`tree` with the empty dicts of `like` put back."""
  flat = traverse_util.flatten_dict(tree)
  wanted = traverse_util.flatten_dict(like, keep_empty_nodes=True)
  for path, value in wanted.items():
    if value is traverse_util.empty_node:
      flat[path] = value
    elif path not in flat:
      raise ValueError(
        f'The checkpoint has no {"/".join(path)} of the optimizer: it was '
        'written by another optimizer or for other adapters. To start anew '
        'from its parameters, set utils.RestoreCheckpointConfig.assignment_map '
        '= ((r"state/param_states/.*", None),) and fallback_to_scratch = True.'
      )
  return traverse_util.unflatten_dict(flat)


def _for_t5x(recipe: Recipe) -> Callable[..., OptimizerDef]:
  """The recipe without its learning rate; it returns an `OptimizerDef`."""

  @functools.wraps(recipe)
  def make(**options) -> OptimizerDef:
    return OptimizerDef(functools.partial(recipe, **options))

  signature = inspect.signature(recipe)
  options = [
    p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for name, p in signature.parameters.items()
    if name != 'learning_rate'
  ]
  make.__signature__ = signature.replace(
    parameters=options, return_annotation=OptimizerDef
  )
  make.__module__ = __name__
  make.__doc__ = f'`lora_opt.{recipe.__name__}` without its learning rate.'
  return make


adamw = _for_t5x(recipes.adamw)
altlora = _for_t5x(recipes.altlora)
lamb = _for_t5x(recipes.lamb)
lora_fa = _for_t5x(recipes.lora_fa)
lora_muon = _for_t5x(recipes.lora_muon)
lora_plus = _for_t5x(recipes.lora_plus)
lora_pro = _for_t5x(recipes.lora_pro)
lora_rite = _for_t5x(recipes.lora_rite)
muon = _for_t5x(recipes.muon)
polora = _for_t5x(recipes.polora)
reflora = _for_t5x(recipes.reflora)
reflora_s = _for_t5x(recipes.reflora_s)
scaled_adamw = _for_t5x(recipes.scaled_adamw)
scaled_gd = _for_t5x(recipes.scaled_gd)
shampoo = _for_t5x(recipes.shampoo)


class LoraModule:
  """A T5X network whose dense layers have LoRA pairs beside their kernels.

    models.EncoderDecoderModel.module = @lora_opt.integrations.t5x.LoraModule()
    lora_opt.integrations.t5x.LoraModule.module = @network.Transformer()

  Every layer with `kernel_axes`, `features` and `axis`, as T5X's DenseGeneral
  has them, computes x W + (alpha / rank) (x A) B if its name matches `targets`.
  The network's parameters keep their places, so a pretrained checkpoint of the
  bare network fits. kernel_lora_a and kernel_lora_b are added beside `kernel`,
  with axis names.
  """

  def __init__(
    self,
    module: nn.Module,
    rank: int = 16,
    alpha: float = 16.0,
    targets: str = r'(query|key|value|out|wi(_\d+)?|wo)',
  ):
    """Wraps the network.

    Args:
      module: a T5X network, a linen module.
      rank: rank of every pair.
      alpha: the product of the factors is multiplied by alpha / rank.
      targets: regular expression that must match a layer's own name in full.
    """
    self._module = module
    self._rank = rank
    self._scale = alpha / rank
    self._targets = re.compile(targets)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.__dict__['_module'], name)

  def init(self, *args: Any, **kwargs: Any) -> Any:
    """`nn.Module.init`, with LoRA parameters."""
    with nn.intercept_methods(self._intercept):
      return self._module.init(*args, **kwargs)

  def apply(self, *args: Any, **kwargs: Any) -> Any:
    """`nn.Module.apply`, with LoRA."""
    with nn.intercept_methods(self._intercept):
      return self._module.apply(*args, **kwargs)

  def _intercept(self, call, args, kwargs, context):
    layer, out = context.module, call(*args, **kwargs)
    if context.method_name != '__call__' or not self._is_target(layer):
      return out
    return out + self._adapt(layer, args[0], out.shape).astype(out.dtype)

  def _is_target(self, layer: nn.Module) -> bool:
    dense = all(hasattr(layer, x) for x in ('kernel_axes', 'features', 'axis'))
    return dense and bool(self._targets.fullmatch(layer.name or ''))

  def _adapt(self, layer, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns (alpha / rank) x A B, in the shape of the layer's output."""
    axis = layer.axis if isinstance(layer.axis, tuple) else (layer.axis,)
    fan_in = 1
    for i in axis:
      fan_in *= x.shape[i]
    batch = x.shape[: x.ndim - len(axis)]
    x = x.astype(layer.dtype).reshape(*batch, fan_in)
    fan_out = 1
    for n in shape[len(batch) :]:
      fan_out *= n
    row, column = layer.kernel_axes
    a = flax_partitioning.param_with_axes(
      'kernel_lora_a',
      nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
      (fan_in, self._rank),
      jnp.float32,
      axes=(row, 'lora_rank'),
      module=layer,
    )
    b = flax_partitioning.param_with_axes(
      'kernel_lora_b',
      nn.initializers.zeros_init(),
      (self._rank, fan_out),
      jnp.float32,
      axes=('lora_rank', column),
      module=layer,
    )
    a, b = a.astype(layer.dtype), b.astype(layer.dtype)
    return (self._scale * ((x @ a) @ b)).reshape(shape)
