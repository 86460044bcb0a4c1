"""Derives the sharding of an optimizer's state from that of the parameters."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec


def state_shardings(tx: optax.GradientTransformation, params: Any) -> Any:
  """The sharding of each leaf of `tx.init(params)`.

  Leaves with the shape of a parameter (moments, last factors) get its sharding.
  So do vectors along its long axis, whose rank axis has length one. r x r
  matrices, counts and norms are replicated on every device. Without this
  `jax.jit(tx.init)` leaves the sharding of zeros to the compiler, and the
  training step is compiled twice, since its first call returns them sharded
  differently.

  Args:
    tx: any optax transformation.
    params: arrays, or `jax.ShapeDtypeStruct` with shardings to plan ahead of
      time; all on one mesh.

  Returns:
    A tree like the state, to pass to `jax.jit` as `out_shardings`.

  Raises:
    ValueError: a parameter has no `NamedSharding`, or there are no parameters.

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
    # Parameters that a partition or mask hides from a transformation have no
    # state in it.
    lambda leaf, x: leaf if _is_hidden(leaf) else _like(leaf, x),
    jax.eval_shape(tx.init, params),
    params,
    is_leaf=_is_hidden,
    transform_non_params=lambda part: jax.tree.map(lambda _: everywhere, part),
  )


def _like(leaf, x):
  """The sharding of x, adapted to a leaf whose axes may have length one."""
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
