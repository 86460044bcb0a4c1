"""Partitioning: which part of which array is on which device.

A model names the axes of its arrays ('embed', 'heads', 'mlp', ...). Rules say
along which axis of the device mesh each name is split:

  data    weights are replicated, each replica has its own rows
  fsdp    rows are split too, and weights along 'embed': gathered when used
  tensor  heads, 'mlp' and vocabulary are split: activations are summed

Everything else follows: the optimizer's state is placed like its parameters,
and batches and the decoding cache are split by rows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_opt.devices.together import Together

MESH_AXES = ('data', 'fsdp', 'tensor')

Rules = Sequence[tuple[str, str | Sequence[str] | None]]

# Names that no rule mentions (layers, lora_rank, ...) are not split.
DEFAULT_RULES: Rules = (
  ('batch', ('data', 'fsdp')),
  ('vocab', 'tensor'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('mlp', 'tensor'),
  ('embed', 'fsdp'),
)


def _as_tuple(axes: str | Sequence[str] | None) -> tuple[str, ...]:
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """The shape of the device mesh and the rules; `place` applies them.

  Attributes:
    data: number of devices along `data`; None for all that the other axes
      leave.
    fsdp: number of devices along `fsdp`.
    tensor: number of devices along `tensor`, the axis that communicates most;
      devices that are close to each other share it.
    rules: (logical axis, mesh axis or axes or None); the first match wins.

  Raises:
    ValueError: a size is below 1, or a rule names an unknown mesh axis.

  >>> Partitioner(fsdp=4).shape(8)
  (2, 4, 1)
  """

  data: int | None = None
  fsdp: int = 1
  tensor: int = 1
  rules: Rules = DEFAULT_RULES

  def __post_init__(self):
    for name in MESH_AXES:
      size = getattr(self, name)
      if size is not None and size < 1:
        raise ValueError(f'{name}={size} must be at least 1')
    for name, axes in self.rules:
      if unknown := set(_as_tuple(axes)) - set(MESH_AXES):
        raise ValueError(
          f'rule for {name!r}: {", ".join(sorted(unknown))} is not a mesh '
          f'axis; there are {", ".join(MESH_AXES)}'
        )

  def shape(self, devices: int) -> tuple[int, int, int]:
    """Number of devices along each axis of the mesh.

    Raises:
      ValueError: this number of devices does not form such a mesh.
    """
    data = self.data or max(1, devices // (self.fsdp * self.tensor))
    shape = (data, self.fsdp, self.tensor)
    if math.prod(shape) != devices:
      raise ValueError(
        f'there are {devices} devices, and data={self.data or "the rest"}, '
        f'fsdp={self.fsdp}, tensor={self.tensor} do not make a mesh of them: '
        'their product must be the number of devices'
      )
    return shape

  def place(
    self, model: Any, devices: Sequence[jax.Device] | None = None
  ) -> 'Placement':
    """Places a model on a mesh.

    Args:
      model: has base, init(rng), `logical_axes()` (two trees of `PartitionSpec`
        with axis names, for the base and the trained arrays) and optionally
        `axis_units`: axis name -> largest number of parts to split it into.
      devices: the devices of all processes by default.

    Raises:
      ValueError: see `shape`.
    """
    devices = jax.devices() if devices is None else devices
    mesh = Mesh(device_grid(self.shape(len(devices)), devices), MESH_AXES)
    names = model.logical_axes()
    trees = (model.base, jax.eval_shape(model.init, jax.random.key(0)))
    rules = _dividing_rules(
      self.rules, mesh, names, trees, getattr(model, 'axis_units', {})
    )

    def shardings(names, tree):
      return _map_names(
        lambda names, x: NamedSharding(mesh, _spec(names, x.ndim, rules)),
        names,
        tree,
      )

    return Placement(mesh, rules, *map(shardings, names, trees))


DATA_PARALLEL = Partitioner()


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
  """Where all arrays of one model are placed.

  Attributes:
    mesh: the mesh of all devices, with the axes data, fsdp and tensor.
    rules: the rules that apply to this model.
    base: sharding of each frozen array.
    trainable: sharding of each trained array.
  """

  mesh: Mesh
  rules: Rules
  base: Any
  trainable: Any

  @property
  def whole(self) -> NamedSharding:
    """Sharding of an array that every device holds in full."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def rows(self) -> NamedSharding:
    """Sharding of an array split along its first axis, the rows of a batch."""
    return NamedSharding(self.mesh, _spec(('batch',), 1, self.rules))

  @property
  def row_shards(self) -> int:
    """Number of parts that the rows of a batch are split into."""
    axes = _as_tuple(self.rows.spec[0]) if self.rows.spec else ()
    return math.prod(self.mesh.shape[axis] for axis in axes)

  def check_batch(self, batch_size: int, microbatches: int) -> None:
    """Raises ValueError unless the devices share each microbatch evenly."""
    parts = self.row_shards * microbatches
    if batch_size % parts:
      raise ValueError(
        f'batch_size={batch_size} does not divide evenly into '
        f'microbatches={microbatches} on {self.row_shards} groups of devices '
        f'(data x fsdp); use a multiple of {parts}'
      )

  def process_rows(self, batch_size: int) -> list[int]:
    """The rows of a global batch that the devices of this process hold."""
    places = self.rows.addressable_devices_indices_map((batch_size,))
    held = (range(batch_size)[rows] for (rows,) in places.values())
    return sorted({row for rows in held for row in rows})

  def jit(self, function: Callable[..., Any], **settings) -> Callable[..., Any]:
    """`jax.jit` that applies a model's sharding constraints on activations.

    Several processes start to run it together (`together.Together`).
    """
    if self.mesh.size == 1:
      return jax.jit(function, **settings)

    @functools.wraps(function)
    def placed(*args):
      with (
        jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh),
        nn.logical_axis_rules(self.rules),
      ):
        return function(*args)

    jitted = jax.jit(placed, **settings)
    return jitted if jax.process_count() == 1 else Together(jitted)

  def gather(self, tree: Any) -> Any:
    """Copies full arrays to the host of every process; all must call it."""
    if jax.process_count() > 1:
      tree = jax.jit(lambda tree: tree, out_shardings=self.whole)(tree)
    return jax.device_get(tree)

  def put_batch(
    self, batch: Mapping[str, np.ndarray], batch_size: int
  ) -> dict[str, jax.Array]:
    """Makes global arrays from the rows of this process.

    Args:
      batch: name -> array of shape (rows of `process_rows`, ...).
      batch_size: number of rows of all processes together.
    """
    place = {row: i for i, row in enumerate(self.process_rows(batch_size))}

    def put(value):
      def part(index):
        rows = range(batch_size)[index[0]]
        return value[place[rows[0]] : place[rows[-1]] + 1]

      shape = (batch_size, *value.shape[1:])
      return jax.make_array_from_callback(shape, self.rows, part)

    return {name: put(value) for name, value in batch.items()}

  def put_rows(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Splits a batch that every process holds in full."""
    return put(dict(batch), self.rows)


def put(tree: Any, shardings: Any) -> Any:
  """Places arrays that every process holds in full.

  Args:
    tree: arrays on the host or on a device of this process.
    shardings: one for all arrays, or a tree of them. With a single process,
      arrays that are already in place are not copied.

  Raises:
    ValueError: there are shapes instead of arrays, as in a model for planning.
  """
  if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
    raise ValueError(
      'the model has shapes and no weights (WEIGHTS=False), which is enough '
      'for --run_mode=plan alone'
    )
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def place(x, sharding):
    host = np.asarray(x)
    return jax.make_array_from_callback(
      host.shape, sharding, lambda index: host[index]
    )

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda x: place(x, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def device_grid(
  shape: tuple[int, int, int], devices: Sequence[jax.Device]
) -> np.ndarray:
  """Arranges devices in a mesh, so that its neighbours are close in hardware.

  A fast network joins the devices of a TPU slice, a slow one joins slices. So
  only `data` extends over slices. Elsewhere JAX lists devices by process, so
  `data`, the first axis, is the one that extends over machines.

  Args:
    shape: number of devices along data, fsdp and tensor.
    devices: as many as `shape` says.

  Raises:
    ValueError: `data` cannot be split over the slices evenly.
  """
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices == 1:
    return _split_if_needed(mesh_utils.create_device_mesh, shape, devices)
  data, *inner = shape
  if data % slices:
    raise ValueError(
      f'data={data} must be a multiple of the {slices} slices: fsdp and tensor '
      'stay within one'
    )
  return _split_if_needed(
    mesh_utils.create_hybrid_device_mesh,
    (data // slices, *inner),
    (slices, 1, 1),
    devices,
  )


def _split_if_needed(make: Callable[..., np.ndarray], *given) -> np.ndarray:
  """Makes a mesh of whole axes of the network, or of parts if necessary.

  On 4 x 4 TPUs, 8 along `fsdp` and 2 along `tensor` are not whole axes.
  """
  try:
    return make(*given)
  except NotImplementedError:
    return make(*given, allow_split_physical_axes=True)


def _dividing_rules(rules, mesh, names, trees, units) -> Rules:
  """Drops the rules whose mesh axes do not divide every axis of their name.

  So weights and activations stay consistent: a name is split everywhere or
  nowhere.
  """
  sizes: dict[str, set[int]] = {name: {n} for name, n in units.items()}

  def note(names, x):
    for name, size in zip(names, x.shape, strict=False):
      if isinstance(name, str):
        sizes.setdefault(name, set()).add(size)

  for pair in zip(names, trees, strict=True):
    _map_names(note, *pair)

  def divides(name, axes):
    parts = math.prod(mesh.shape[axis] for axis in _as_tuple(axes))
    return all(size % parts == 0 for size in sizes.get(name, ()))

  return tuple((name, axes) for name, axes in rules if divides(name, axes))


def _map_names(function: Callable[..., Any], names: Any, tree: Any) -> Any:
  """Maps over names and arrays; the parts of a quantized array share names."""
  return jax.tree.map(
    lambda names, part: jax.tree.map(lambda x: function(names, x), part),
    names,
    tree,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def _spec(names: Sequence[str | None], rank: int, rules: Rules):
  """The mesh axes of an array; its axes beyond `names` are not split."""
  names = (*names, *[None] * (rank - len(names)))
  return nn.logical_to_mesh_axes(names, rules)
