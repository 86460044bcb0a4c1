"""Weights layer by layer, instead of in stacks over all layers.

A loop that meets the weights of every layer at every turn, as decoding does,
would have each layer's copied out of its stack each time: on a CPU that is a
fifth of the time of a step (experiments/decoding). Cut apart before the loop,
they take their room twice while it runs; and as they are copied anyway, kernels
are laid out as the product with few rows wants them.
"""

import flax.struct
import jax
import jax.numpy as jnp

from lora_opt.models.variables import Tree

# More bytes than this stay in stacks, so that a large model still fits.
MOST_BYTES = 4 * 2**30


class TurnedKernel(flax.struct.PyTreeNode):
  """A kernel (fan_in, fan_out) that is stored as its transpose.

  Attributes:
    turned: (fan_out, fan_in); see `lora_opt.models.products`.
  """

  turned: jax.Array


def unstacked(tree: Tree | None) -> Tree | None:
  """A tree of variables with a tuple for every stack of layers.

  Args:
    tree: Base weights, or an adapter; stacks are what lies under 'layers'.

  Returns:
    The same tree for `layer_of`, with a `TurnedKernel` for each kernel of
    float32; as it is, if it has no such stacks or these are too large to be
    there twice.
  """
  stacks = None if tree is None else tree.get('layers')
  if stacks is None:
    return tree
  leaves = jax.tree.leaves(stacks)
  if sum(x.size * x.dtype.itemsize for x in leaves) > MOST_BYTES:
    return tree
  return {**tree, 'layers': jax.tree_util.tree_map_with_path(_cut, stacks)}


def layer_of(stacks: Tree, index: int) -> Tree:
  """One layer's variables, of stacks or tuples."""
  return jax.tree.map(
    lambda stack: stack[index], stacks, is_leaf=lambda x: isinstance(x, tuple)
  )


def _cut(path, stack: jax.Array) -> tuple:
  name = getattr(path[-1], 'key', None)
  if name != 'kernel' or stack.dtype != jnp.float32:
    return tuple(stack)
  # The barrier: no compiler is to move the transposition into the loop.
  turned = jax.lax.optimization_barrier([kernel.T for kernel in stack])
  return tuple(map(TurnedKernel, turned))
