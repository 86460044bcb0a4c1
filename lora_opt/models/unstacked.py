"""Weights layer by layer, instead of in stacks over all layers.

A loop that uses the weights of every layer in every iteration, as decoding
does, would copy each layer out of its stack every time: on a CPU that is a
fifth of the time of a step (experiments/decoding). If the weights are split
before the loop, they take twice the memory while it runs. As they are copied
anyway, kernels get the layout that is fastest for products with few rows.
"""

import flax.struct
import jax
import jax.numpy as jnp

from lora_opt.models.variables import Tree

# Stacks of more bytes than this together are not split, so that a large model
# still fits.
MOST_BYTES = 4 * 2**30


class TurnedKernel(flax.struct.PyTreeNode):
  """A kernel (fan_in, fan_out) that is stored as its transpose.

  Attributes:
    turned: (fan_out, fan_in); see `lora_opt.models.products`.
  """

  turned: jax.Array


def unstacked(tree: Tree | None) -> Tree | None:
  """Replaces every stack of layers in a tree of variables by a tuple.

  Args:
    tree: Base weights, or an adapter; the stacks are the arrays under 'layers'.

  Returns:
    The tree for `layer_of`, with a `TurnedKernel` for each float32 kernel; or
    the unchanged tree, if it has no stacks or they are too large to be in
    memory twice.
  """
  stacks = None if tree is None else tree.get('layers')
  if stacks is None:
    return tree
  leaves = jax.tree.leaves(stacks)
  if sum(x.size * x.dtype.itemsize for x in leaves) > MOST_BYTES:
    return tree
  return {**tree, 'layers': jax.tree_util.tree_map_with_path(_cut, stacks)}


def layer_of(stacks: Tree, index: int) -> Tree:
  """The variables of one layer, from stacks or tuples."""
  return jax.tree.map(
    lambda stack: stack[index], stacks, is_leaf=lambda x: isinstance(x, tuple)
  )


def _cut(path, stack: jax.Array) -> tuple:
  name = getattr(path[-1], 'key', None)
  if name != 'kernel' or stack.dtype != jnp.float32:
    return tuple(stack)
  # The barrier keeps the compiler from moving the transposition into the loop.
  turned = jax.lax.optimization_barrier([kernel.T for kernel in stack])
  return tuple(map(TurnedKernel, turned))
