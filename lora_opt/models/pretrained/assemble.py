"""From the flat tensors of a checkpoint to our tree, and back."""

import functools
import math
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from lora_opt import progress
from lora_opt.models.pretrained.besides import Copy, rule_of
from lora_opt.models.pretrained.family import (
  Family,
  Slot,
  TensorName,
  Tree,
  slots,
)
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.placing import (
  Index,
  place_array,
  place_layers,
)
from lora_opt.models.quantized import leaves_by_path, quantize_stack
from lora_opt.reading.values import plain

# Numbers that are looked at together.
_CHUNK = 2**20


def assemble(
  source: str,
  abstract: Tree,
  names: Mapping[str, TensorName],
  tensors: Mapping[str, StoredTensor],
  dtype: str,
  shardings: Sequence[Sharding | None] | None = None,
  kinds: Mapping[str, str] | None = None,
) -> Tree:
  """Builds the base weights of a model from a checkpoint's tensors.

  All names, shapes and types are checked before the first tensor is read.
  Then each array goes to its devices shard by shard, tensor by tensor: host
  memory holds one shard at a time besides what the devices keep there.

  Args:
    source: Path, for messages.
    abstract: Tree of `jax.ShapeDtypeStruct` of the weights.
    names: Path of our array: the name of its tensor.
    tensors: Name: tensor of the checkpoint.
    dtype: Type to store the weights in.
    shardings: Where each leaf goes, in the order of the tree; by default all
      go to the default device.
    kinds: Paths of stacked kernels to quantize: how, see `quantize_kernel`.
      Each layer is rounded when it arrives, before the next one is read.

  Returns:
    Nested dict of arrays, layers stacked on axis 0.

  Raises:
    ValueError: For a missing, unknown, mis-shaped or wrongly typed tensor, by
      name.
  """
  expected = slots(abstract, names)
  check_tensors(source, expected, tensors)
  stacks: dict[str, list[StoredTensor]] = {}
  for name, slot in expected.items():
    stacks.setdefault(slot.path, []).append(tensors[name])
  leaves, structure = leaves_by_path(abstract), jax.tree.structure(abstract)
  shardings, kinds = shardings or [None] * len(leaves), kinds or {}
  kind, arrays, done = jnp.dtype(dtype), [], 0
  size = kind.itemsize * sum(math.prod(x.shape) for x in leaves.values())
  with progress.Bar(f'reading {_short(source)}', size, unit='B') as bar:
    for (path, leaf), sharding in zip(leaves.items(), shardings, strict=True):
      read = functools.partial(
        _read, stacks[path], names[path], kind, bar.update
      )
      whole = (leaf.shape, kind, sharding, read)
      if path in kinds:
        arrays.append(quantize_stack(place_layers(*whole), kinds[path]))
      else:
        arrays.append(place_array(*whole))
      done += kind.itemsize * math.prod(leaf.shape)
      bar.to(done)  # what other processes hold was not read here
  return jax.tree.unflatten(structure, arrays)


def _read(
  tensors: Sequence[StoredTensor],
  name: TensorName,
  dtype: np.dtype,
  tell: Callable[[int], None],
  index: Index,
) -> np.ndarray:
  """Reads a part of one of our arrays from the tensors it consists of.

  Args:
    tensors, name, dtype: see `assemble`.
    tell: is called with the bytes of each tensor that are there.
    index: of the part.

  Raises:
    ValueError: If a number is NaN or infinite, or becomes so in this type.
  """
  part = np.empty([i.stop - i.start for i in index], dtype)
  stacked = '{}' in name.name
  inner = index[1:] if stacked else index
  for row, tensor in enumerate(tensors[index[0]] if stacked else tensors):
    whole = tensor.open()
    whole = whole.reshape(whole.shape[name.ones :])
    values = (whole.T if name.transposed else whole)[inner]
    here = part[row if stacked else ...]
    with np.errstate(over='ignore'):
      here[...] = values
    if not all_finite(here):
      raise ValueError(_not_finite(tensor, values, dtype))
    tell(here.nbytes)
  return part


def _short(source: str) -> str:
  """The end of a path, which tells it from others."""
  return '/'.join(pathlib.PurePath(source).parts[-2:])


def all_finite(x: np.ndarray) -> bool:
  """Whether no number is NaN or infinite; takes little memory."""
  flat = x.reshape(-1)
  parts = (flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK))
  return all(_finite(part) for part in parts)


def _finite(x: np.ndarray) -> bool:
  if x.dtype.itemsize != 2:
    return bool(np.isfinite(x).all())
  # All bits of the exponent set, where NumPy has no fast loop of its own.
  exponent = 0x7C00 if x.dtype == np.float16 else 0x7F80
  return not ((x.view(np.uint16) & exponent) == exponent).any()


def _not_finite(tensor: StoredTensor, values: np.ndarray, dtype: np.dtype):
  bad = values[~np.isfinite(values)]
  if bad.size:
    return (
      f'{tensor.where} has {bad.size} values that are not finite, the first is '
      f'{bad[0]}: the file is damaged, or its training had diverged'
    )
  largest = float(abs(values).max())
  return (
    f'{tensor.where} has values up to {largest:g}, which {dtype.name} cannot '
    f'hold: its largest is {float(jnp.finfo(dtype).max):g}'
  )


def disassemble(
  base: Tree, names: Mapping[str, TensorName]
) -> dict[str, np.ndarray]:
  """The inverse of `assemble`: name and contiguous array of every tensor."""
  leaves, tensors = leaves_by_path(base), {}
  for name, slot in slots(base, names).items():
    array = np.asarray(leaves[slot.path])
    part = array if slot.layer is None else array[slot.layer]
    part = part.T if slot.transposed else part
    tensors[name] = np.ascontiguousarray(part).reshape(slot.shape)
  return tensors


def parameter_names(
  family: Family, config, stored: Mapping[str, object]
) -> dict[str, str]:
  """The full names of a checkpoint's parameters, and what they are there.

  Leaves out what is not a parameter (copies of tied weights, buffers; see
  `Family.besides`), and adds the prefix that checkpoints without a head lack.
  Where a copy is there and what it is a copy of is not, the copy is taken.

  Args:
    family: Whose checkpoint it is.
    config: The model's config.
    stored: Names in the checkpoint, as a mapping or set.

  Returns:
    Name in the family's table: name in the checkpoint.
  """
  besides = family.besides(config)
  known = slots(family.abstract_base(config), family.names)
  found, copies = {}, {}
  for name in stored:
    full, rule = _full_name(family, known, name), rule_of(besides, name)
    if full in known or rule is None:
      _take(found, full, name)
    elif isinstance(rule, Copy):
      copies.setdefault(rule.of, name)
  return copies | found


def second_names(
  family: Family, known: Collection[str], stored: Mapping[str, object]
) -> dict[str, str]:
  """Tensors of a checkpoint that are another one by an older or shorter name.

  Args:
    family: Whose checkpoint it is.
    known: Full names.
    stored: Names in the checkpoint, as a mapping or set.

  Returns:
    Name in the checkpoint: full name that more than one of them has.
  """
  names = {}
  for name in stored:
    names.setdefault(_full_name(family, known, name), []).append(name)
  return {
    name: full
    for full, several in names.items()
    if full in known and len(several) > 1
    for name in several
  }


def _take(found: dict[str, str], full: str, name: str) -> None:
  """Notes the name of a parameter; its full name goes before others."""
  if full not in found or name == full:
    found[full] = name


def head_names(
  family: Family, head: Tree, stored: Mapping[str, object]
) -> dict[str, str]:
  """The same for those tensors of a trained head that a checkpoint has.

  Args:
    family: Whose checkpoint it is.
    head: Tree {'head': ...} of arrays or of their shapes.
    stored: Names in the checkpoint, as a mapping or set.
  """
  known = slots(head, family.names)
  full = {}
  for name in stored:
    _take(full, _full_name(family, known, name), name)
  return {name: full[name] for name in known if name in full}


def _full_name(family, known, name):
  for old, new in {**family.renamed, **family.spelled}.items():
    name = name.replace(old, new)
  if name not in known and f'{family.prefix}{name}' in known:
    return f'{family.prefix}{name}'
  return name


def check_tensors(
  source: str,
  expected: Mapping[str, Slot],
  tensors: Mapping[str, StoredTensor],
) -> None:
  """Raises ValueError unless a checkpoint has exactly the tensors expected."""
  for problem, names in (
    ('lacks', expected.keys() - tensors.keys()),
    ('has unknown', tensors.keys() - expected.keys()),
  ):
    if names:
      few = ', '.join(plain(name) for name in sorted(names)[:5])
      raise ValueError(
        f'{source} {problem} tensor(s) {few}'
        f'{f" and {len(names) - 5} more" if len(names) > 5 else ""}; a '
        'checkpoint must have exactly the tensors its config calls for'
      )
  for name, slot in expected.items():
    tensors[name].check(slot.shape)
