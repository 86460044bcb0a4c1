"""Where the state of an optimizer lies, given where the parameters lie."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec


def state_shardings(tx: optax.GradientTransformation, params: Any) -> Any:
  """The sharding of each leaf of `tx.init(params)`.

  What has the shape of a parameter (moments, last factors) lies where the
  parameter lies, and so does a vector along its long axis, which has the rank
  axis with length one; r x r matrices, counts and norms are on every device.
  Without it `jax.jit(tx.init)` leaves the place of zeros to the compiler, and
  the first step, which returns them elsewhere, is compiled a second time.

  Args:
    tx: any optax transformation.
    params: arrays, or `jax.ShapeDtypeStruct` with shardings to plan ahead of
      time; on one mesh.

  Returns:
    A tree like the state, to be given to `jax.jit` as `out_shardings`.

  Raises:
    ValueError: a parameter has no `NamedSharding`.

  >>> mesh = jax.make_mesh((1,), ('data',))
  >>> x = jax.device_put(1.0, NamedSharding(mesh, PartitionSpec()))
  >>> tx = optax.sgd(0.1, momentum=0.9)
  >>> state = jax.jit(tx.init, out_shardings=state_shardings(tx, x))(x)
  >>> state[0].trace.sharding == x.sharding
  True
  """
  mesh = None
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if not isinstance(getattr(x, 'sharding', None), NamedSharding):
      raise ValueError(
        f'{jax.tree_util.keystr(path)} has no NamedSharding: place the '
        'parameters on a mesh first (jax.device_put(params, shardings))'
      )
    mesh = x.sharding.mesh
  if mesh is None:
    raise ValueError('there are no parameters')
  everywhere = NamedSharding(mesh, PartitionSpec())
  return optax.tree_map_params(
    tx,
    # What a partition or mask hides from a transformation has no state.
    lambda leaf, x: leaf if _is_hidden(leaf) else _like(leaf, x),
    jax.eval_shape(tx.init, params),
    params,
    is_leaf=_is_hidden,
    transform_non_params=lambda part: jax.tree.map(lambda _: everywhere, part),
  )


def _like(leaf, x):
  """The sharding of x, for a leaf of which some axes may have length one."""
  if leaf.shape == x.shape:
    return x.sharding
  spec = (*x.sharding.spec, *[None] * (x.ndim - len(x.sharding.spec)))
  spec = [
    axis if size == whole else None
    for axis, size, whole in zip(spec, leaf.shape, x.shape, strict=True)
  ]
  return x.sharding.update(spec=PartitionSpec(*spec))


def _is_hidden(x):
  return isinstance(x, optax.MaskedNode)
