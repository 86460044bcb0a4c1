"""From the flat tensors of a checkpoint to our tree, and back."""

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.pretrained.family import (
  Family,
  Slot,
  TensorName,
  Tree,
  leaves_by_path,
  slots,
)


def assemble(
  source: str,
  abstract: Tree,
  names: Mapping[str, TensorName],
  dtype: str,
  shapes: Mapping[str, tuple[int, ...]],
  read: Callable[[str], np.ndarray],
) -> Tree:
  """Builds the base weights of a model from a checkpoint's tensors.

  All names and shapes are checked before the first tensor is read.

  Args:
    source: Path, for messages.
    abstract: Tree of `jax.ShapeDtypeStruct` of the weights.
    names: Path of our array: the name of its tensor.
    dtype: Type to store the weights in.
    shapes: Shape of every tensor of the checkpoint.
    read: Returns a tensor by name.

  Returns:
    Nested dict of arrays, layers stacked on axis 0.

  Raises:
    ValueError: For a missing, unknown or mis-shaped tensor, by name.
  """
  expected = slots(abstract, names)
  check_shapes(source, expected, shapes)
  parts = {}
  for name, slot in expected.items():
    part = np.asarray(read(name)).astype(jnp.dtype(dtype))
    part = part.T if slot.transposed else part
    parts.setdefault(slot.path, []).append((slot.layer, part))
  arrays = [
    jnp.asarray(
      part[0][1] if part[0][0] is None else np.stack([x for _, x in part])
    )
    for part in parts.values()
  ]
  return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def disassemble(
  base: Tree, names: Mapping[str, TensorName]
) -> dict[str, np.ndarray]:
  """The inverse of `assemble`: name and contiguous array of every tensor."""
  leaves, tensors = leaves_by_path(base), {}
  for name, slot in slots(base, names).items():
    array = np.asarray(leaves[slot.path])
    part = array if slot.layer is None else array[slot.layer]
    tensors[name] = np.ascontiguousarray(part.T if slot.transposed else part)
  return tensors


def parameter_names(
  family: Family, config, stored: Mapping[str, object]
) -> dict[str, str]:
  """The full names of a checkpoint's parameters, and what they are there.

  Leaves out what is no parameter (copies of tied weights, buffers), and adds
  the prefix that checkpoints without a head lack.

  Args:
    family: Whose checkpoint it is.
    config: The model's config.
    stored: Names in the checkpoint, as a mapping or set.

  Returns:
    Name in the family's table: name in the checkpoint.
  """
  ignored = re.compile(family.ignored(config))
  known = slots(family.abstract_base(config), family.names)
  found = {}
  for name in stored:
    full = name
    if name not in known and f'{family.prefix}{name}' in known:
      full = f'{family.prefix}{name}'
    if full in known or not ignored.fullmatch(name):
      found[full] = name
  return found


def check_shapes(
  source: str,
  expected: Mapping[str, Slot],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Raises ValueError unless a checkpoint has exactly the tensors expected."""
  for problem, names in (
    ('lacks', expected.keys() - shapes.keys()),
    ('has unknown', shapes.keys() - expected.keys()),
  ):
    if names:
      few = ', '.join(sorted(names)[:5])
      raise ValueError(
        f'{source} {problem} tensor(s) {few}'
        f'{f" and {len(names) - 5} more" if len(names) > 5 else ""}; a '
        'checkpoint must have exactly the tensors its config calls for'
      )
  for name, slot in expected.items():
    if tuple(shapes[name]) != slot.shape:
      raise ValueError(
        f'{source}: tensor {name} has shape {tuple(shapes[name])}, the config '
        f'calls for {slot.shape}'
      )
