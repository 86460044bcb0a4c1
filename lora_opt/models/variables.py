"""The variables of any of our networks: frozen `params`, trainable `lora`.

A network is a Flax module whose `example_inputs()` returns small arguments of
its `__call__`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Tree = Any  # nested dict of arrays


def apply_variables(base: Tree, lora: Tree | None) -> Tree:
  """The variables for `network.apply`; without an adapter, only the base."""
  return {'params': base} if lora is None else {'params': base, 'lora': lora}


def abstract_variables(network: nn.Module) -> Tree:
  """Shapes of all variables of a network, boxed with their logical axes."""
  return _abstract_variables(network, jax.sharding.get_abstract_mesh())


@functools.lru_cache(maxsize=8)  # they are needed five times at startup
def _abstract_variables(network: nn.Module, mesh: Any) -> Tree:
  del mesh  # part of the cache key: tracing depends on the current mesh
  return jax.eval_shape(lambda: _boxed_variables(network, {}))


def abstract_params(network: nn.Module) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return nn.unbox(abstract_variables(network))['params']


def logical_axes(network: nn.Module) -> tuple[Tree, Tree]:
  """Names of the axes of base and adapter: trees of `PartitionSpec`."""
  specs = nn.get_partition_spec(abstract_variables(network))
  return specs['params'], specs.get('lora', {})


@functools.partial(jax.jit, static_argnums=(0, 1))
def init_collection(
  network: nn.Module, collection: str, rng: jax.Array
) -> Tree:
  """Draws the variables of one collection, 'params' or 'lora'."""
  variables = _boxed_variables(network, {collection: rng})
  return nn.unbox(variables[collection])


def init_adapter(
  network: nn.Module, base: Tree, start: Tree | None, rng: jax.Array
) -> Tree:
  """Draws the trainable variables of a network.

  Args:
    network: The adapted network.
    base: Its weights, which some adapters start from; or their shapes, if only
      the shapes of the result matter.
    start: Variables that are already known, such as factors taken out of the
      base; the others are drawn.
    rng: Key for the draws.
  """
  leaves = jax.tree.leaves(base)
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
    return init_collection(network, 'lora', rng)
  # Copied, since a training step may overwrite its arguments.
  return _complete(network, base, jax.tree.map(jnp.copy, start or {}), rng)


@functools.partial(jax.jit, static_argnums=0)
def _complete(network, base, start, rng):
  # The compiled program has only the part of the forward pass that the result
  # needs.
  _, variables = network.apply(
    {'params': base, 'lora': start},
    *network.example_inputs(),
    rngs={'lora': rng},
    mutable=['lora'],
  )
  return nn.unbox(variables['lora'])


def _boxed_variables(network: nn.Module, rngs: Mapping[str, jax.Array]) -> Tree:
  # The initializers of a collection that is not returned do not run in the
  # compiled program, but they need a key when it is traced.
  spare = {'params': jax.random.key(0), 'lora': jax.random.key(0)}
  return network.init(spare | dict(rngs), *network.example_inputs())
