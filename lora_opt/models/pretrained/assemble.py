"""Converts the flat tensors of a checkpoint to our tree, and back."""

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

# Values that are checked at a time.
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
  Then each array is read tensor by tensor and sent to its devices shard by
  shard. Besides what the devices themselves keep there, host memory holds one
  shard at a time.

  Args:
    source: Path of the checkpoint, for messages.
    abstract: Tree of `jax.ShapeDtypeStruct` of the weights.
    names: Maps the path of each of our arrays to the name of its tensor.
    tensors: The checkpoint's tensors by name.
    dtype: Type to store the weights in.
    shardings: The sharding of each leaf, in the order of the tree; by default,
      all leaves go to the default device.
    kinds: Maps the paths of stacked kernels to how they are quantized, see
      `quantize_kernel`. Each layer is quantized before the next one is read.

  Returns:
    Nested dict of arrays, layers stacked on axis 0.

  Raises:
    ValueError: If a tensor is missing, unknown, mis-shaped or of a wrong type,
      or if a value is not finite; the message names it.
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
      bar.to(done)  # the shards of other processes were not read here
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
    tensors, name, dtype: See `assemble`.
    tell: Called with the number of bytes read from each tensor.
    index: Slices that select the part.

  Raises:
    ValueError: If a value is NaN or infinite, or becomes so in `dtype`.
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
  """The last two parts of a path, enough to recognise it."""
  return '/'.join(pathlib.PurePath(source).parts[-2:])


def all_finite(x: np.ndarray) -> bool:
  """Whether no value is NaN or infinite; uses little memory."""
  flat = x.reshape(-1)
  parts = (flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK))
  return all(_finite(part) for part in parts)


def _finite(x: np.ndarray) -> bool:
  if x.dtype.itemsize != 2:
    return bool(np.isfinite(x).all())
  # NumPy has no fast loop for 16 bits. NaN and infinity are the values whose
  # exponent has all bits set.
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
  """The inverse of `assemble`: all tensors by name, as contiguous arrays."""
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
  """Maps the full names of parameters to their names in a checkpoint.

  Leaves out what is not a parameter (copies of tied weights, buffers; see
  `Family.besides`), and adds the prefix that checkpoints without a head lack.
  If a checkpoint has a copy but not the original, the copy is used.

  Args:
    family: The checkpoint's family.
    config: The model's config.
    stored: Names in the checkpoint, as a mapping or set.

  Returns:
    The name in the checkpoint for each name in the family's table.
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
  """Finds tensors of a checkpoint whose names stand for the same parameter.

  Some of these names are older or shorter than the full one.

  Args:
    family: The checkpoint's family.
    known: Full names of the parameters.
    stored: Names in the checkpoint, as a mapping or set.

  Returns:
    The full name for each name in the checkpoint that shares it with another.
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
  """Records the name of a parameter; its full name takes precedence."""
  if full not in found or name == full:
    found[full] = name


def head_names(
  family: Family, head: Tree, stored: Mapping[str, object]
) -> dict[str, str]:
  """Like `parameter_names`, for the tensors of a trained head that are stored.

  Args:
    family: The checkpoint's family.
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
