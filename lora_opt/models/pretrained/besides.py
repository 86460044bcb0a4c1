"""Rules for what checkpoints hold besides their parameters.

No tensor is left out because of its name alone. A copy must equal its original,
and a buffer must have the values that the config gives. Only the parameters of
parts that our models do not have are left out unchecked.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from lora_opt.models.pretrained.files import StoredTensor

# Values that are compared at a time.
CHUNK = 2**22


class Copy(NamedTuple):
  """A second tensor with the values of a parameter."""

  of: str  # full name of the parameter


class Buffer(NamedTuple):
  """A tensor whose values follow from the config."""

  matches: Callable[[np.ndarray], bool]
  says: str  # what the values are, for messages
  most: int = 2**26  # largest number of values


class Unused(NamedTuple):
  """Parameters of a part that our model does not have."""

  part: str


# Maps a regular expression, for whole names, to the rule for such tensors.
Besides = Mapping[str, Copy | Buffer | Unused]


def rule_of(besides: Besides, name: str) -> Copy | Buffer | Unused | None:
  """Returns the rule for a tensor that is not a parameter, or None."""
  for pattern, rule in besides.items():
    if re.fullmatch(pattern, name):
      return rule
  return None


def check_besides(
  besides: Besides,
  tensors: Mapping[str, StoredTensor],
  parameters: Mapping[str, str],
  second_names: Mapping[str, str],
) -> None:
  """Checks the tensors that will not be read, and logs the unused ones.

  Args:
    besides: The rules for such tensors.
    tensors: The checkpoint's tensors by name.
    parameters: Maps the full name of each tensor that will be read to its name
      in the checkpoint.
    second_names: Maps the name of a tensor in the checkpoint to the full name
      of a parameter that is read from another tensor.

  Raises:
    ValueError: If a tensor does not follow its rule.
  """
  read, unused = {*parameters.values()}, []
  for name in tensors.keys() - read:
    tensor, rule = tensors[name], rule_of(besides, name)
    if name in second_names:
      rule = Copy(second_names[name])
    if isinstance(rule, Copy) and rule.of in parameters:
      check_copy(tensor, tensors[parameters[rule.of]])
    elif isinstance(rule, Buffer):
      _check_buffer(tensor, rule)
    elif isinstance(rule, Unused):
      unused.append(f'{name} ({rule.part})')
  if unused:
    few = ', '.join(sorted(unused)[:5])
    more = f' and {len(unused) - 5} more' if len(unused) > 5 else ''
    logging.info('tensors without a use here: %s%s', few, more)


def check_copy(tensor: StoredTensor, original: StoredTensor) -> None:
  """Raises ValueError unless two tensors are equal."""
  if reason := difference(tensor, original):
    raise ValueError(
      f'{tensor.where} should be a copy of {original.name} in {original.file}, '
      f'but {reason}: which of them the model computes with is not said; get '
      'the files again, or save the model with one of the two'
    )


def _check_buffer(tensor: StoredTensor, rule: Buffer) -> None:
  size = int(np.prod(tensor.shape, dtype=object))
  if size > rule.most or not rule.matches(tensor.open()):
    raise ValueError(
      f'{tensor.where}, of shape {tensor.shape}, is not {rule.says}, which the '
      'config calls for: config and weights do not belong together'
    )


def difference(tensor: StoredTensor, original: StoredTensor) -> str | None:
  """How two tensors differ, in words; None if they are equal.

  Their types may differ. They are compared in parts, to use little memory.
  """
  if tensor.shape != original.shape:
    return f'their shapes are {tensor.shape} and {original.shape}'
  ours, theirs = (t.open().reshape(-1) for t in (tensor, original))
  for start in range(0, ours.size, CHUNK):
    a, b = ours[start : start + CHUNK], theirs[start : start + CHUNK]
    equal = _equal(a, b)
    if not equal.all():
      at = int(np.argmin(equal))
      where = [int(i) for i in np.unravel_index(start + at, tensor.shape)]
      return f'they are {a[at]} and {b[at]} at {where}'
  return None


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  if a.dtype == b.dtype:
    # Bit by bit: fast for every type, and NaN counts as a copy of NaN.
    bits = np.dtype(f'u{a.dtype.itemsize}')
    same = a.view(bits) == b.view(bits)
    if same.all():
      return same
  return a.astype(np.float64) == b.astype(np.float64)


def is_range(x: np.ndarray) -> bool:
  """Whether the values are 0, 1, 2 ... along the last axis."""
  return x.ndim in (1, 2) and bool((x == np.arange(x.shape[-1])).all())


def is_causal_mask(x: np.ndarray) -> bool:
  """Whether each query sees the keys up to its own position only."""
  if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
    return False
  return bool((x == np.tri(x.shape[-1], dtype=bool)).all())


def is_very_negative(x: np.ndarray) -> bool:
  """Whether it is a single number that acts as -infinity in a softmax."""
  return x.size == 1 and float(x.reshape(())) < -9000
