"""Operations of matrix products, counted in the traced program.

The trace has the sizes of every product and the length of every loop, whatever
a compiler turns them into later: products become convolutions on TPUs and
library calls on GPUs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend import core


def product_flops(
  program: core.ClosedJaxpr, platform: str | None = None
) -> int:
  """Counts operations of all devices together, two for each multiply-add.

  The body of a loop counts once per iteration (once for a `while`, whose length
  is unknown), a conditional as its most expensive branch, and recomputation as
  often as it is done. All blocks of a kernel count, even those that it skips
  because a mask makes them empty.

  Args:
    program: Such as `jax.jit(f).trace(...).jaxpr`.
    platform: The platform that it is lowered for: 'tpu', 'cuda' or 'cpu'.
      Branches for other platforms do not count. If None, the most expensive
      branch counts.

  >>> import jax, jax.numpy as jnp
  >>> x = jnp.ones((4, 8))
  >>> product_flops(jax.make_jaxpr(lambda x: x @ x.T)(x))
  256
  """
  return sum(_flops(each, platform) for each in program.jaxpr.eqns)


def _flops(equation: Any, platform: str | None) -> int:
  name, parameters = equation.primitive.name, equation.params
  if name == 'dot_general':
    ((contracted, _), _) = parameters['dimension_numbers']
    left = equation.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * inner
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    out_features = kernel[parameters['dimension_numbers'].rhs_spec[0]]
    each = math.prod(kernel) // out_features
    return 2 * math.prod(equation.outvars[0].aval.shape) * each
  if name == 'cond':
    return max(
      product_flops(branch, platform)
      for branch in _branches(parameters, platform)
    )
  return _times(name, parameters) * sum(
    _flops(inner, platform)
    for value in parameters.values()
    for jaxpr in _programs(value)
    for inner in jaxpr.eqns
  )


def _branches(
  parameters: dict[str, Any], platform: str | None
) -> Sequence[core.ClosedJaxpr]:
  """The branches of a conditional that a platform may take."""
  branches = parameters['branches']
  platforms = parameters.get('branches_platforms')
  if platform is None or platforms is None:
    return branches
  for branch, names in zip(branches, platforms, strict=True):
    if names is None or platform in names:  # None, the last: all others
      return (branch,)
  return branches


def _times(name: str, parameters: dict[str, Any]) -> int:
  """How often an equation's inner programs run, on all devices together."""
  if name == 'scan':
    return parameters['length']
  if name == 'shard_map':  # its inner program is one device's part
    return parameters['mesh'].size
  if name == 'pallas_call':
    return math.prod(parameters['grid_mapping'].grid)
  return 1


def _programs(value: Any) -> Iterator[core.Jaxpr]:
  """Yields the programs inside a parameter of an equation."""
  if isinstance(value, core.ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, core.Jaxpr):
    yield value
  elif isinstance(value, tuple | list):
    for each in value:
      yield from _programs(each)
