"""Reads the groups of devices in a collective, in the notations of XLA.

{{0,1},{2,3}}                       explicit lists
[2,4]<=[4,2]T(1,0)                  0, 1, ... in the shape (4, 2), transposed,
                                    then as 2 groups of 4
mesh['a'=2,'b'=4] {'b'}             along axis b of a mesh of all devices
mesh['a'=2,'b'=4] {'b':(2)2}        along a part of axis b: its size is 2,
                                    inside an outer part of size 2
mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}    devices in another order
"""

import math
import re

import numpy as np

_LISTED = re.compile(
  r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}'
)
_IOTA = re.compile(
  r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_MESH = re.compile(
  r'replica_groups=mesh\[([^\]]*)\]'
  r'(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}'
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def device_groups(attributes: str, devices: int) -> list[list[int]]:
  """The devices of each group of a collective, as positions in the mesh.

  Args:
    attributes: The attributes of the instruction.
    devices: Number of all devices. They form one group if none is given.

  Raises:
    ValueError: The groups are in an unknown notation.

  >>> device_groups('replica_groups=[2,2]<=[2,2]T(1,0)', 4)
  [[0, 2], [1, 3]]
  >>> device_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4)
  [[0, 2], [1, 3]]
  >>> device_groups('replica_groups={}', 4)
  [[0, 1, 2, 3]]
  """
  if match := _LISTED.search(attributes):
    lists = re.findall(r'\{([\d,]+)\}', match[1])
    return [list(_numbers(ids)) for ids in lists]
  if match := _IOTA.search(attributes):
    groups, order, axes = match.groups()
    return _iota(order, axes).reshape(_numbers(groups)).tolist()
  if match := _MESH.search(attributes):
    mesh, order, axes, parts = match.groups()
    ids = np.arange(devices) if order is None else _iota(order, axes)
    return _along(ids, mesh, parts)
  if re.search(r'replica_groups=(?!\{\})', attributes):
    raise ValueError(f'replica groups in an unknown form: {attributes[:200]}')
  return [list(range(devices))]


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))


def _iota(order: str, axes: str | None) -> np.ndarray:
  """Returns 0, 1, 2, ... in a shape, transposed."""
  shape = _numbers(order)
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(_numbers(axes) if axes else None)


def _along(ids: np.ndarray, mesh: str, parts: str) -> list[list[int]]:
  """Groups along some axes of a mesh of ids, or along parts of axes."""
  # Every axis becomes (outer, part, inner), with sizes 1 where not divided.
  wanted = {
    axis: (int(outer or 1), int(size or 0))
    for axis, outer, size in _PART.findall(parts)
  }
  shape, along = [], []
  for axis, size in _AXIS.findall(mesh):
    outer, part = wanted.get(axis, (1, 1))
    part = part or int(size)
    if axis in wanted:
      along.append(len(shape) + 1)
    shape += [outer, part, int(size) // (outer * part)]
  across = [i for i in range(len(shape)) if i not in along]
  group = math.prod(shape[i] for i in along)
  return (
    ids.reshape(shape).transpose(across + along).reshape(-1, group).tolist()
  )
