"""What checkpoints hold besides their parameters, and what it must be.

Nothing is left out by its name alone. A copy must be equal to what it is a copy
of, a buffer must have the values that the config gives; only the parameters of
parts that a model does not have here are left out as they are.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from lora_opt.models.pretrained.files import StoredTensor

# Numbers that are compared at a time.
CHUNK = 2**22


class Copy(NamedTuple):
  """A second tensor with the values of a parameter."""

  of: str  # full name of the parameter


class Buffer(NamedTuple):
  """Values that follow from the config."""

  matches: Callable[[np.ndarray], bool]
  says: str  # what they are, for messages
  most: int = 2**26  # numbers that it may have


class Unused(NamedTuple):
  """Parameters of a part that the model does not have here."""

  part: str


# A regular expression over whole names: what is known of such tensors.
Besides = Mapping[str, Copy | Buffer | Unused]


def rule_of(besides: Besides, name: str) -> Copy | Buffer | Unused | None:
  """What is known of a tensor that is not a parameter; None for nothing."""
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
  """Checks what will not be read; what is not used is logged.

  Args:
    besides: What is known of it.
    tensors: Name: tensor of the checkpoint.
    parameters: Full name: name in the checkpoint of what will be read.
    second_names: Name in the checkpoint: full name of a parameter that another
      tensor was taken for.

  Raises:
    ValueError: A tensor is not what it should be.
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

  Their types may differ. Compared in parts, so that memory stays small.
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
    # By bits: fast for every type, and NaN is a copy of NaN.
    bits = np.dtype(f'u{a.dtype.itemsize}')
    same = a.view(bits) == b.view(bits)
    if same.all():
      return same
  return a.astype(np.float64) == b.astype(np.float64)


def is_range(x: np.ndarray) -> bool:
  """Whether the values are 0, 1, 2 ... along the last axis."""
  return x.ndim in (1, 2) and bool((x == np.arange(x.shape[-1])).all())


def is_causal_mask(x: np.ndarray) -> bool:
  """Whether each query sees the keys up to its own place."""
  if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
    return False
  return bool((x == np.tri(x.shape[-1], dtype=bool)).all())


def is_very_negative(x: np.ndarray) -> bool:
  """Whether it is one number that stands for minus infinity in a softmax."""
  return x.size == 1 and float(x.reshape(())) < -9000
